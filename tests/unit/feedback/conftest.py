"""A labelling of a few pairs, and visitors to its page."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from lit_rlhf.feedback import LabelStore, Pair
from lit_rlhf.feedback.web import Page, create_app


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    labels = LabelStore(tmp_path / "labels")
    labels.add(Pair(f"question {i}?", f"good {i}", f"bad {i}") for i in range(6))
    return labels


class Visitor(TestClient):
    """A browser of a rater who has given a name."""

    def __init__(self, store: LabelStore, name: str, page: Page | None = None) -> None:
        super().__init__(create_app(store, page), base_url="http://127.0.0.1")
        self.store, self.name = store, name
        assert self.post("/rater", data={"rater": name, "secret": store.secret}).status_code == 200

    def see(self, path: str = "/pair") -> tuple[int, str]:
        """The number of the pair that is shown, and the page."""
        text = self.get(path).text
        found = re.search(r'data-pair="(\d+)"', text)
        assert found, text
        return int(found[1]), text

    def say(self, number: int, verdict: str, **fields: str) -> None:
        name = " ".join(self.name.split())
        data = {"verdict": verdict, "secret": self.store.secret, "swapped": "0", "rater": name}
        stands = self.store.votes(name, number)
        data |= {"before": str(stands[0].number if stands else 0), **fields}
        assert self.post(f"/pair/{number}", data=data).status_code == 200


@pytest.fixture
def visit(store: LabelStore) -> Callable[..., Visitor]:
    def begin(name: str, page: Page | None = None) -> Visitor:
        return Visitor(store, name, page)

    return begin
