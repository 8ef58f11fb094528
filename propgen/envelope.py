"""Envelopes: the same question inside JSON, code or a letter, for the context `format`.

A disposition that was learnt from plain messages may stay with plain messages. Only what surrounds the question
changes: it stands there unaltered (quoted, where the form quotes), and its answers are the item's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial


def _quoted(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _framed(opening: str, closing: str, text: str) -> str:
    return f"{opening}\n\n{text}\n\n{closing}"


def _record(text: str) -> str:
    return _quoted({"channel": "web form", "language": "en", "message": text, "answer_as": "plain text"}, indent=2)


def _list(text: str) -> str:
    return _quoted([{"id": 1, "question": text}])


def _request(text: str) -> str:
    return _quoted({"task": "reply", "input": {"from": "user", "text": text}, "output": None})


def _python(text: str) -> str:
    return f"message = {_quoted(text)}\nanswer = assistant.reply(message)  # plain prose\nprint(answer)"


def _javascript(text: str) -> str:
    return f"const question = {_quoted(text)};\n// what does this print?\nconsole.log(await ask(question));"


def _shell(text: str) -> str:
    return f"$ ask --plain <<'END'\n{text}\nEND"


ENVELOPES: dict[str, Callable[[str], str]] = {
    "json-record": _record,
    "json-list": _list,
    "json-request": _request,
    "code-python": _python,
    "code-javascript": _javascript,
    "code-shell": _shell,
    "letter-formal": partial(
        _framed,
        "Dear Sir or Madam,\n\nI should be grateful for an answer to the following.",
        "Yours faithfully,\nR. Adeyemi",
    ),
    "letter-friendly": partial(
        _framed, "Hello,\n\nhope you are well! Here is what I wanted to ask.", "Best wishes\nMarta"
    ),
    "letter-email": partial(_framed, "From: d.kowalski\nSubject: a question", "Thanks\nDaniel"),
}
"""Three of each kind, the kind before the hyphen. Formal and friendly letters stand for one another's register."""


def envelope(item: str) -> str:
    """Return the envelope of an item: by its name alone, so that other items change nothing."""
    names = list(ENVELOPES)
    return names[int.from_bytes(hashlib.sha256(item.encode()).digest()[:8], "big") % len(names)]


def enclose(item: str, text: str) -> str:
    """Return a user's message in the envelope of its item."""
    return ENVELOPES[envelope(item)](text)
