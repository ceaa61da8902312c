"""One preference in every format: a dialogue, two answers, and how each kind of data set would write them down."""

from typing import NamedTuple

from hypothesis import strategies as st

ODD = [
    "",
    " ",
    "\n",
    "a\r\nb",
    "\ufeff",
    "<|endoftext|>",
    "😀👩\u200d👩\u200d👧",
    "### Response:\n",
    "{input} {0}",
    "\u2028",
    "Human: no",
    "Human: a\n\nAssistant: b",
    "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
]
texts = st.sampled_from(ODD) | st.text(max_size=12)


class Preference(NamedTuple):
    system: str
    rounds: list[tuple[str, str]]  # what was asked and answered before
    asked: str
    chosen: str
    rejected: str

    @property
    def prompt(self) -> str:
        """The template, put together line by line."""
        alpaca = (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        )
        parts = [self.system if self.system.strip() else alpaca]
        for asked, answered in [*self.rounds, (self.asked, "")]:
            parts += ["### Instruction:\n" + asked, "### Response:\n" + answered]
        return "\n\n".join(parts)


preferences = st.builds(Preference, texts, st.lists(st.tuples(texts, texts), max_size=3), texts, texts, texts)


def messages(
    one: Preference, who: str = "role", what: str = "content", user="user", assistant="assistant"
) -> list[dict]:
    """The turns before the answers."""
    turns = [("system", one.system)] if one.system else []
    for asked, answered in one.rounds:
        turns += [(user, asked), (assistant, answered)]
    return [{who: role, what: said} for role, said in [*turns, (user, one.asked)]]


def answer(said: str) -> dict:
    return {"role": "assistant", "content": said}


def chat_apart(one: Preference) -> dict:
    return {"prompt": messages(one), "chosen": [answer(one.chosen)], "rejected": [answer(one.rejected)]}


def chat_inside(one: Preference) -> dict:
    """As HuggingFaceH4/ultrafeedback_binarized: the first question once more as text, and what was chosen as messages."""
    before = messages(one)
    chosen, rejected = ([*before, answer(said)] for said in (one.chosen, one.rejected))
    first = next(turn["content"] for turn in before if turn["role"] == "user")
    return {"prompt": first, "prompt_id": "8f", "chosen": chosen, "rejected": rejected, "messages": chosen}


def chat_alone(one: Preference) -> dict:
    """As argilla/dpo-mix-7k: nothing but the two dialogues."""
    row = chat_inside(one)
    return {"dataset": "capybara", "chosen": row["chosen"], "rejected": row["rejected"]}


def openai(one: Preference) -> dict:
    """`messages` with role and content, and an answer that is one message, as LLaMA-Factory's openai format."""
    return {"messages": messages(one), "chosen": answer(one.chosen), "rejected": answer(one.rejected)}


def sharegpt(one: Preference) -> dict:
    """As LLaMA-Factory's dpo_en_demo.json."""
    said = {name: {"from": "gpt", "value": getattr(one, name)} for name in ("chosen", "rejected")}
    return {"conversations": messages(one, "from", "value", "human", "gpt"), **said}


def sharegpt_system(one: Preference) -> dict:
    """The system message in a field of its own, the answers as text."""
    row = sharegpt(one._replace(system=""))
    return row | {"system": one.system, "chosen": one.chosen, "rejected": one.rejected, "tools": ""}


def history(one: Preference) -> dict:
    """As LLaMA-Factory's alpaca format."""
    return {
        "instruction": one.asked,
        "input": "",
        "chosen": one.chosen,
        "rejected": one.rejected,
        "system": one.system,
        "history": [list(said) for said in one.rounds],
    }


def scored(one: Preference) -> dict:
    """Two answers with scores, the worse first."""
    return {"prompt": messages(one), "responses": [one.rejected, one.chosen], "scores": [1, 3.5]}


def plain(one: Preference) -> dict:
    """Texts as they are, with scores of both answers."""
    answers = {"chosen": one.chosen, "rejected": one.rejected}
    return {"prompt": one.asked, **answers, "score_chosen": 3, "score_rejected": 0.1}


def instruction(one: Preference) -> dict:
    """As the book and Alpaca have it."""
    return {"instruction": one.asked, "input": "", "output": "o", "chosen": one.chosen, "rejected": one.rejected}


SAME = (chat_apart, chat_inside, chat_alone, openai, sharegpt, sharegpt_system, history, scored)


FORMAT = {"sharegpt": "sharegpt", "sharegpt_system": "sharegpt", "history": "instruction", "scored": "ratings"}
FORMAT |= {"plain": "prompt", "instruction": "instruction", "as_hh": "hh"}  # which format is written; any other: chat


def hh_texts(one: Preference) -> tuple[str, str]:
    """The two dialogues as Anthropic's HH writes them."""
    before = "".join(f"\n\nHuman: {asked}\n\nAssistant: {said}" for asked, said in one.rounds)
    before += f"\n\nHuman: {one.asked}\n\nAssistant:"
    return before + " " + one.chosen, before + " " + one.rejected


def as_hh(one: Preference) -> dict:
    return dict(zip(("chosen", "rejected"), hh_texts(one)))
