"""vaderSentiment's rules as a reward: `FunctionReward("benchmarks/human_sentiment/judge.py:sentiment")`."""

from collections.abc import Sequence
from functools import cache

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from benchmarks.human_sentiment.rows import PREFIX


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def sentiment(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Sentiment of whole sentences, -1 to 1.

    Example:
        >>> sentiment(["Film review: A very"], [" bad film."])[0] < 0
        True
    """
    sentences = [
        (prompt + response).removeprefix(PREFIX).strip()
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    return [float(_analyzer().polarity_scores(text)["compound"]) for text in sentences]
