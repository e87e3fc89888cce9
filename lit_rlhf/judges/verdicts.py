"""From the words of a judge to a number."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lit_rlhf.options import check_option, is_number, is_text


@dataclass(frozen=True)
class Verdict:
    r"""The words that a judge may answer with, and what each is worth.

    Its value is the expected worth, $\sum_w p_w v_w / \sum_w p_w$ over the words that are worth something (as RLAIF,
    arXiv:2309.00267, normalises the probabilities of its answers).

    Args:
        words: Worth of each word. None: whoever says it abstains.
        pattern: A regular expression that finds the word in a text, as its group; where it matches several times, the
            last counts. None: the one word in the last line.

    Raises:
        ConfigurationError: Fewer than two words are worth something, or a worth is no number.

    Example:
        >>> verdict = Verdict({"A": 1, "B": 0, "tie": 0.5, "neither": None})
        >>> verdict.value({"A": 0.375, "B": 0.125})
        0.75
        >>> verdict.read("The first is shorter.\nVerdict: **tie**")
        'tie'
        >>> Verdict({"1": 1, "2": 2}, r"Score: (\d)").read("Score: 2, of 2. It is long.")
        '2'
    """

    words: Mapping[str, float | None]
    pattern: str | None = None

    def __post_init__(self) -> None:
        """Check the words."""
        worth = [value for value in self.words.values() if value is not None]
        numbers = all(is_number(value) and math.isfinite(value) for value in worth)
        check_option(numbers, self, "words", dict(self.words), "a finite number or null each")
        spelled = all(is_text(word) and word == word.strip() for word in self.words)
        check_option(spelled, self, "words", dict(self.words), "words, without blanks around them")
        check_option(len(worth) > 1, self, "words", dict(self.words), "two words worth something")
        allowed = "a regular expression with one group, the word"
        try:
            groups = 1 if self.pattern is None else re.compile(self.pattern).groups
        except re.error:
            groups = 0
        check_option(groups == 1, self, "pattern", self.pattern, allowed)

    def value(self, probs: Mapping[str, float]) -> float | None:
        """The expected worth; None where more than half of the probability abstains.

        Args:
            probs: Of the words, not all 0; they need not sum to 1.
        """
        held = {w: p * worth for w, p in probs.items() if (worth := self.words[w]) is not None}
        mass = math.fsum(probs[word] for word in held)
        if mass <= 0 or mass < math.fsum(probs.values()) / 2:
            return None
        return math.fsum(held.values()) / mass

    def read(self, text: str, *, cut: bool = False) -> str | None:
        """The one word of the verdict that a text says; None where none or several are said, or no word is one.

        Args:
            text: The answer.
            cut: Whether it ended at its length limit: its last line may be in the midst of a thought, and says the
                word only where that is the last thing that it says.
        """
        if self.pattern is not None:
            said = re.findall(self.pattern, text)
            return said[-1] if said and said[-1] in self.words else None
        lines = text.strip().splitlines()
        word, last = _any_of([*self.words]), lines[-1] if lines else ""
        if cut and not re.search(rf"(?<!\w)(?:{word})\W*$", last):
            return None
        found = set(re.findall(rf"(?<!\w)(?:{word})(?!\w)", last))
        return found.pop() if len(found) == 1 else None

    def read_each(self, text: str, names: Iterable[str]) -> dict[str, str]:
        """The word that stands behind each name, as in `name: word`; the last where there are several.

        Names count in any case, and with Markdown or quotation marks around them and their words. Those without a word
        are left out.
        """
        spelled = {name.casefold(): name for name in names}
        name, word = (_any_of([*side]) for side in (spelled.values(), self.words))
        marks = r"[\"'*`_]*"
        each = rf"(?<!\w)((?i:{name})){marks}\s*[:=]\s*{marks}({word})(?!\w|[.,]\d)"
        return {spelled[n.casefold()]: said for n, said in re.findall(each, text)}

    def match(self, token: str) -> str | None:
        """The word that a token is, or is the beginning of where it begins no other."""
        token = token.strip()
        if not token or token in self.words:
            return token or None
        begun = [word for word in self.words if word.startswith(token)]
        return begun[0] if len(begun) == 1 else None


def _any_of(texts: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
