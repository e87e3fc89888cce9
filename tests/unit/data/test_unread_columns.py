"""Which columns of the rows a format doesn't look at, for what is said of them."""

from lit_rlhf.data import PromptOnly
from lit_rlhf.data.finding import unread_columns


def test_carried_columns_count_as_read() -> None:
    rows = [{"prompt": "2 + 2 =", "answer": "4"}]
    assert unread_columns(PromptOnly(), rows) == []
    assert unread_columns(PromptOnly(columns=[]), rows) == ["answer"]
