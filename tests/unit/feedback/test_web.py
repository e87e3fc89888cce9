import re
import socket
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.feedback import LabelStore, Pair, Vote
from lit_rlhf.feedback.web import Page, create_app, serve

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</textarea></section></form><h1>mine</h1>",
    "\"><svg onload='alert(1)'>",
    "![picture](http://203.0.113.1/x.png)",
    "[click](javascript:alert(1)) <javascript:alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "[x]: javascript:alert(1)\n\n[x]",
    "```html\n<script>alert(1)</script>\n```",
    "`<b>`",
    "&lt;b&gt; \ud800 \0 \u202e",
]


class Tags(HTMLParser):
    """All tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def check_nothing_alive(self) -> None:
        for tag, attributes in self.found:
            assert tag not in ("img", "svg", "iframe", "object", "style", "base")
            assert not any(name.startswith(("on", "style")) for name in attributes), attributes
            if tag == "script":
                assert str(attributes["src"]).startswith("/static/")
            assert str(attributes.get("href", "/")).startswith(("/", "http", "#"))


@pytest.mark.parametrize("markdown", [True, False])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_shows_as_text(
    store: LabelStore, visit: Any, hostile: str, markdown: bool
) -> None:
    visible = hostile.encode(errors="replace").decode()
    page = Page([f"helpful {visible}"], comments=True, markdown=markdown, instructions=hostile)
    turn = [{"role": f"user {hostile}", "content": hostile, hostile: hostile}]
    store.add([Pair(turn, [{"role": "assistant", "content": [{"text": hostile}]}], turn)])
    store.add([Pair(hostile, hostile + "1", hostile + "2")])
    name = "".join(c for c in hostile if c.isprintable())[:50]
    rater = visit(name, page)
    for number in (7, 8):
        rater.say(number, "first", comment=visible)
        _, text = rater.see(f"/pair/{number}")
        tags = Tags(text)
        tags.check_nothing_alive()
        assert " ".join(name.split()) in tags.text
        if not markdown:
            assert tags.text.count(visible.replace("\0", "\ufffd")) > 2
    for path in ("/progress", "/pair"):
        Tags(rater.get(path).text).check_nothing_alive()
    rater.cookies.clear()
    Tags(rater.get("/").text).check_nothing_alive()


def test_scripts_show_as_text(store: LabelStore, visit: Any) -> None:
    store.add([Pair(HOSTILE[0], HOSTILE[1], "```\n" + HOSTILE[0] + "\n```")])
    rater = visit("ann")
    rater.say(7, "tie")
    text = Tags(rater.see("/pair/7")[1]).text
    assert text.count(HOSTILE[0]) == 2
    assert HOSTILE[1] in text


def test_markdown_and_code_are_rendered(store: LabelStore, visit: Any) -> None:
    store.add(
        [
            Pair(
                "**bold** [x](https://example.org)",
                "```python\na < b\n```",
                "- one\n- two\n\n|a|b|\n|-|-|\n|1|2|",
            )
        ]
    )
    rater = visit("ann")
    rater.say(7, "tie")
    page = rater.see("/pair/7")[1]
    for part in ("<strong>bold</strong>", "a &lt; b\n</code></pre>", "<li>one</li>", "<td>1</td>"):
        assert part in page
    link = next(
        attributes
        for tag, attributes in Tags(page).found
        if attributes.get("href") == "https://example.org"
    )
    assert link["rel"] == "noopener noreferrer nofollow"
    plain = visit("ann", Page(markdown=False)).see("/pair/7")[1]
    assert '<div class="as-written">**bold** [x]' in plain


def test_of_two_tabs_the_first_answer_stands(store: LabelStore, visit: Any) -> None:
    """The second one shows the pair as it was, and would correct an answer that its rater no longer sees."""
    ann = visit("ann", Page(comments=True))
    number, page = ann.see()
    assert ann.see() == (number, page)
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
    right = {**fields, "verdict": "first", "comment": "long thought of"}
    for _ in range(2):  # sent again, as after an answer that got lost
        assert ann.post(f"/pair/{number}", data=right).status_code == 200
    late = ann.post(f"/pair/{number}", data={**fields, "verdict": "second"})
    assert late.status_code == 409
    assert "answered this pair since this page was opened" in late.text
    (vote,) = store.votes("ann")
    assert (vote.number, vote.verdict, vote.comment) == (1, "first", "long thought of")
    _, page = ann.see(f"/pair/{number}")
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
    assert ann.post(f"/pair/{number}", data={**fields, "verdict": "tie"}).status_code == 200
    assert [vote.verdict for vote in store.votes("ann")] == ["tie"]


def test_conversations_are_shown_as_turns(store: LabelStore, visit: Any) -> None:
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}
    store.add(
        [
            Pair(
                turns,
                [call, {"role": "tool", "content": "42"}],
                [{"role": "assistant", "content": "go"}],
            )
        ]
    )
    rater = visit("ann")
    rater.say(7, "tie")
    page = rater.see("/pair/7")[1]
    roles = re.findall(r'<div class="role">(\w+)</div>', page)
    assert roles[:2] == ["system", "user"]
    assert sorted(roles[2:]) == ["assistant", "assistant", "tool"]
    assert "&#34;look&#34;" in page
    assert page.count('class="text" dir="auto"') == 5  # right-to-left texts stand right-to-left


def test_a_vote_is_stored_as_it_was_shown(store: LabelStore, visit: Any) -> None:
    rater = visit("ann", Page(["helpful"], comments=True))
    for _ in range(6):
        number, page = rater.see()
        swapped = re.search(r'name="swapped" value="(.)"', page)
        sides = re.findall(r'name="verdict" value="(first|second)"', page)
        assert swapped is not None
        assert sides == (["second", "first"] if swapped[1] == "1" else ["first", "second"])
        good, bad = (page.index(f"{word} {number - 1}<") for word in ("good", "bad"))
        assert (bad < good) == (swapped[1] == "1")
        rater.say(
            number, sides[0], swapped=swapped[1], **{"attribute helpful": "tie"}, comment=" why "
        )
    assert "All done" in rater.get("/pair").text
    votes = store.votes("ann")
    assert all((vote.verdict == "second") == vote.swapped for vote in votes)
    assert {vote.swapped for vote in votes} == {True, False}
    assert votes[0].attributes == {"helpful": "tie"}
    assert votes[0].comment == "why"


def test_reload_shows_the_same_and_another_rater_something_else(visit: Any) -> None:
    ann, bob = visit("ann"), visit("bob")
    first = ann.see()[0]
    assert ann.see()[0] == first != bob.see()[0]
    ann.say(first, "tie")
    assert ann.see()[0] != first


def test_undo_walks_back_and_a_second_choice_replaces_the_first(
    store: LabelStore, visit: Any
) -> None:
    rater = visit("ann", Page(["helpful"], comments=True))
    numbers = []
    for _ in range(2):
        numbers.append(rater.see()[0])
        rater.say(numbers[-1], "first", **{"attribute helpful": "first"}, comment="because <it> is")
    _, page = rater.see()
    assert f'href="/pair/{numbers[1]}" data-key="u"' in page
    _, page = rater.see(f"/pair/{numbers[1]}")
    assert "your choice" in page and "because &lt;it&gt; is</textarea>" in page
    assert page.count("checked") == 1
    assert f'href="/pair/{numbers[0]}" data-key="u"' in page
    assert 'data-key="u"' not in rater.see(f"/pair/{numbers[0]}")[1]
    rater.say(numbers[0], "second")
    verdicts = {vote.pair: vote.verdict for vote in store.votes()}
    assert verdicts == {numbers[0]: "second", numbers[1]: "first"}


def test_a_pair_not_judged_yet_is_no_address(visit: Any) -> None:
    rater = visit("ann")
    assert rater.get("/pair/3", follow_redirects=False).headers["location"] == "/pair"
    assert rater.get("/pair/99", follow_redirects=False).headers["location"] == "/pair"


def test_a_token_opens_the_door(store: LabelStore) -> None:
    with_token = create_app(store, token="sesame ö")
    client = TestClient(with_token)
    for path in ("/", "/pair", "/pair/1", "/progress"):
        refused = client.get(path)
        assert refused.status_code == 401
        assert "question" not in refused.text
    vote = {"verdict": "first", "secret": store.secret}
    assert client.post("/pair/1", data=vote).status_code == 401
    assert client.post("/rater", data={"rater": "ann", "secret": store.secret}).status_code == 401
    assert client.get("/?token=wrong").status_code == 401
    assert client.get("/", params={"token": "sesame ö"}).status_code == 200
    cookie = TestClient(with_token).post(
        "/token", data={"token": "sesame ö"}, follow_redirects=False
    )
    assert re.search("httponly.*samesite=lax", cookie.headers["set-cookie"], re.IGNORECASE)
    client = TestClient(with_token)
    assert client.post("/token", data={"token": "sesame ö"}).status_code == 200
    assert store.votes() == []


def test_forms_of_other_pages_are_refused(store: LabelStore, visit: Any) -> None:
    rater = visit("ann")
    for secret in ({}, {"secret": "guess"}):
        refused = rater.post("/pair/1", data={"verdict": "first", **secret})
        assert refused.status_code == 403
        assert rater.post("/rater", data={"rater": "eve", **secret}).status_code == 403
        assert rater.post("/leave", data=secret).status_code == 403
    assert store.votes() == []


def test_other_names_of_this_machine_are_refused(store: LabelStore) -> None:
    client = TestClient(create_app(store, hosts=["127.0.0.1"]), base_url="http://rebound.example")
    assert client.get("/").status_code == 400


def test_headers_keep_foreign_content_out(visit: Any) -> None:
    for path in ("/pair", "/static/annotate.js", "/nothing"):
        headers = visit("ann").get(path).headers
        assert (
            "default-src 'none'; script-src 'self'; style-src 'self'"
            in headers["content-security-policy"]
        )
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["", "   ", "x" * 61, "a\x07b"])
def test_names_that_are_none(store: LabelStore, visit: Any, name: str) -> None:
    answer = visit("ann").post("/rater", data={"rater": name, "secret": store.secret})
    assert answer.status_code == 422
    assert "A name has 1 to 60 characters" in answer.text


def test_a_page_of_another_rater_is_refused(store: LabelStore, visit: Any) -> None:
    answer = visit("ann").post(
        "/pair/1", data={"verdict": "tie", "secret": store.secret, "rater": "bob"}
    )
    assert answer.status_code == 409
    assert "you are &#39;ann&#39; now" in answer.text
    assert store.votes() == []


def test_two_labellings_on_one_machine_keep_their_cookies_apart(
    store: LabelStore, visit: Any, tmp_path: Any
) -> None:
    cookies = visit("ann").cookies
    other = TestClient(create_app(LabelStore(tmp_path / "other")), cookies=dict(cookies))
    assert "Your name" in other.get("/").text
    assert "Your name" not in TestClient(create_app(store), cookies=dict(cookies)).get("/").text


def test_addresses_that_are_none(visit: Any) -> None:
    answer = visit("ann").get("/pair/<b>")
    assert answer.status_code == 422
    assert "This is no address" in answer.text


def test_names_of_any_script(store: LabelStore, visit: Any) -> None:
    name = 'Zoë 李雷; ="%'
    rater = visit(name)
    rater.say(1, "tie")
    assert store.votes()[0].rater == name
    assert rater.post("/leave", data={"secret": store.secret}).status_code == 200
    assert "Your name" in rater.get("/pair").text


@pytest.mark.parametrize(
    "fields", [{}, {"verdict": "maybe"}, {"verdict": "tie", "attribute x": "all"}]
)
def test_forms_that_say_nothing(store: LabelStore, visit: Any, fields: dict[str, str]) -> None:
    answer = visit("ann", Page(["x"])).post(
        "/pair/1", data={"secret": store.secret, "rater": "ann", **fields}
    )
    assert answer.status_code == 422
    assert store.votes() == []


def test_a_vote_that_can_not_be_stored_is_said(store: LabelStore, visit: Any) -> None:
    rater = visit("ann")
    secret = store.secret
    store.path.write_bytes(b"torn" * 2000)
    for side in ("-wal", "-shm"):
        store.path.with_name(store.path.name + side).unlink(missing_ok=True)
    answer = rater.post("/pair/1", data={"verdict": "tie", "secret": secret, "rater": "ann"})
    assert answer.status_code == 503
    assert "An answer just given was not saved" in answer.text


@pytest.mark.parametrize("names", [["a", "a"], [" "], [str(i) for i in range(10)]])
def test_attributes_are_few_and_different(names: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="attributes must be up to 9 different names"):
        Page(names)


def test_addresses_that_can_not_be_served(store: LabelStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"Can't listen on port {port} of 127.0.0.1"):
            serve(store, port=port)
    with pytest.raises(ConfigurationError, match="no port 99999"):
        serve(store, port=99999)
    with pytest.raises(ConfigurationError, match="The token is empty"):
        serve(store, token=" ")


def test_progress_page(store: LabelStore, visit: Any) -> None:
    for rater, verdicts in (("ann", ["first", "second"]), ("bob", ["first", "first"])):
        for pair, verdict in enumerate(verdicts, start=1):
            store.vote(Vote(pair, rater, verdict))
    page = Tags(visit("ann").get("/progress").text).text
    assert re.search(r"2 of 6\s*pairs have all", page)
    assert re.search(r"0\.00\s*agreement", page)
