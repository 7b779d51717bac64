"""What the demo's processes read and ask, as tokens."""
from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, Optional, Sequence

SHIPPED = "galapagos.txt"
SHIPPED_QUESTIONS = "galapagos.questions.json"
ANSWER_ROOM = 64         # tokens kept free behind the document for a question
QUESTION_TOKENS_MAX = 256
DOCUMENT_TOKENS_MIN = 256


@dataclasses.dataclass
class Question:
    text: str
    evidence: Optional[str] = None  # words of the document that hold the answer
    evidence_token: Optional[int] = None  # where they begin, in tokens of the context
    ids: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Document:
    """The context of all runs: `prefix` is computed once and shared; behind it comes either a
    question or `held_out`, the document's own next words."""
    name: str
    tokens: int  # of the document in the prefix
    text: str    # of the prefix: the chat's opening and the document
    prefix: list[int]
    held_out: list[int]
    questions: list[Question]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "Document":
        fields = json.loads(text)
        fields["questions"] = [Question(**question) for question in fields["questions"]]
        return Document(**fields)


def read_questions(path: pathlib.Path, which: str) -> list[Question]:
    """`which`: "questions", or "quick" for those whose answers lie in the first 2K tokens."""
    return [Question(entry["question"], entry.get("evidence"))
            for entry in json.loads(path.read_text(encoding="utf-8"))[which]]


def build(path: pathlib.Path, questions: Sequence[Question], tokenizer: Any, *, tokens_max: int,
          held_out: int, answer_tokens: int, context_max: int) -> tuple[Document, list[str]]:
    """The document cut to `tokens_max` tokens, the last `held_out` of them kept back. Second: what
    there is to say about it."""
    notes: list[str] = []
    text = path.read_text(encoding="utf-8").strip()
    opening = _chat_opening(tokenizer)
    opening_ids = tokenizer(opening, add_special_tokens=False)["input_ids"] if opening else []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    room = context_max - len(opening_ids) - QUESTION_TOKENS_MAX - answer_tokens - ANSWER_ROOM
    keep = min(len(ids), tokens_max, room + held_out)
    if keep < DOCUMENT_TOKENS_MIN:
        raise SystemExit(f"{path}: {len(ids)} tokens are too few; at least {DOCUMENT_TOKENS_MIN}")
    if keep < len(ids):
        notes.append(f"{path.name} has {len(ids):,} tokens; its first {keep:,} are used")
    end = keep - held_out
    document = text[:offsets[end - 1][1]]

    asked = []
    for question in questions:
        if question.evidence is not None:
            at = document.find(question.evidence)
            if at < 0:
                raise SystemExit(f"{path}: what answers {question.text!r} is not in what is read")
            question.evidence_token = len(opening_ids) + next(
                index for index, (_, stop) in enumerate(offsets) if stop > at)
        question.ids = _question_ids(tokenizer, question.text, bool(opening))
        if len(question.ids) > QUESTION_TOKENS_MAX:
            raise SystemExit(f"a question may have {QUESTION_TOKENS_MAX} tokens, not {len(question.ids)}: "
                             f"{question.text[:60]}...")
        asked.append(question)
    return Document(path.name, end, opening + document, opening_ids + ids[:end], ids[end:keep],
                    asked), notes


def _chat_opening(tokenizer: Any) -> str:
    """What a chat template puts before the words of the user; "" for a model without one."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    chat = tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    return chat[:chat.rindex("<|im_end|>")] if "<|im_end|>" in chat else ""


def _question_ids(tokenizer: Any, text: str, chat: bool) -> list[int]:
    if chat:
        text = f"\n\n{text}<|im_end|>\n<|im_start|>assistant\n"
    else:
        text = f"\n\nQuestion: {text}\nAnswer:"
    return tokenizer(text, add_special_tokens=False)["input_ids"]
