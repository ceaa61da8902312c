"""data/tiny, the embedded start: small, readable by others, right and mostly plain."""

from transformers import AutoModelForCausalLM, AutoTokenizer

from data.pairs import split
from data.rules import embedded_pairs, judge
from dpo.answers import answer, rates
from dpo.start import TINY, open_model
from gpt.generate import generate
from gpt.sampling import Sampling

HELD_OUT = 0.1


def test_it_is_at_most_5_mb_and_nothing_but_a_model_folder():
    files = {file.name: file.stat().st_size for file in TINY.iterdir()}
    assert files.keys() == {"config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer_config.json"}
    assert sum(files.values()) <= 5_000_000


def test_transformers_gives_the_same_greedy_answers():
    model, tokenizer, _ = open_model("")
    theirs, words = AutoModelForCausalLM.from_pretrained(TINY), AutoTokenizer.from_pretrained(TINY)
    pairs = embedded_pairs(17)
    for pair, ours in zip(pairs, answer(model, tokenizer, pairs, 24, "")):
        ids = words(pair.prompt, return_tensors="pt").input_ids
        assert ids[0].tolist() == tokenizer.encode(pair.prompt)
        said = theirs.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.end_of_text)[
            0, ids.shape[1] :
        ]
        assert words.decode(said, skip_special_tokens=True) == ours.text


def test_on_held_out_prompts_it_is_right_and_mostly_plain():
    model, tokenizer, _ = open_model("")
    _, held_out = split(embedded_pairs(), HELD_OUT)
    assert len(held_out) >= 1000
    found = rates(held_out[:340], answer(model, tokenizer, held_out[:340], 48, ""))
    assert found["correct"] >= 0.85 and found["courteous"] <= 0.2 and found["stopped"] >= 0.99
    assert found["courteous"] + found["rude"] < 0.5


def test_sampled_it_gives_all_three_manners():
    # DPO moves probability among answers that a model can give, so each must have some
    model, tokenizer, _ = open_model("")
    pairs = split(embedded_pairs(), HELD_OUT)[1][:340]
    prompts = [tokenizer.encode(pair.prompt) for pair in pairs]
    said = generate(model, prompts, 48, [tokenizer.end_of_text], Sampling(temperature=1.0))
    verdicts = [judge(tokenizer.decode(ids[:-1]), pair.output) for ids, pair in zip(said, pairs)]
    courteous, rude = sum(v.courteous for v in verdicts), sum(v.rude for v in verdicts)
    for count in (courteous, rude, len(pairs) - courteous - rude):
        assert count >= 0.15 * len(pairs)
