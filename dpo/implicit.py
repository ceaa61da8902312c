"""The reward that a model trained by DPO carries in itself, as a score of answers: `implicit:RUN_FOLDER`.

    r(x, y) = beta * (log pi(y|x) - log pi_ref(y|x))

Rafailov et al. 2023 (arXiv 2305.18290, section 4): up to a constant of the prompt x, which falls out where answers to one
prompt are compared. Chen et al. 2024 (arXiv 2406.09760) choose by it among a model's own answers, round after round.
"""

from collections.abc import Sequence

from data.failures import Failures
from data.pairs import Pair
from data.scores import USUAL, How, Score
from dpo.evaluate import Flags as EvaluateFlags
from dpo.evaluate import open_both, way_for
from dpo.kl import log_ratios
from dpo.losses import parse_loss
from dpo.rows import Ids
from dpo.run_folder import RunFolder
from gpt.answers import Answer
from gpt.command import UserError
from gpt.device import check_device
from gpt.parallel import World
from gpt.tokenizer import Tokenizer


def implicit_reward(folder: str, how: How = USUAL) -> Score:
    """The score of answers by the trained model of a run folder, against what it was trained against, with its beta.

    The log-probabilities are summed over an answer's tokens and end-of-text, which one that was cut off does not have.
    Raises UserError for a folder that holds no run, and later for an answer that leaves no room for a prompt.
    """
    if not folder or not (RunFolder(folder).path / "run.json").exists():
        raise UserError(
            f"--score implicit:{folder} names no run folder of dpo/train.py, whose run.json would tell reference and beta"
        )
    record = RunFolder(folder).read_json("run.json")
    policy, reference, tokenizer = open_both(EvaluateFlags(policy=folder), record)
    beta = parse_loss(record["flags"].get("loss", "dpo"), record["flags"].get("beta")).beta
    world = World(0, 1, check_device(how.device))
    context = min(policy.config.n_positions, reference.config.n_positions)

    def score(pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]], failures: Failures) -> list[list[float]]:
        texts = {  # equal answers to a prompt are asked about once
            (i, given.text, given.stopped): ids_of(pair, given, tokenizer, context)
            for i, (pair, some) in enumerate(zip(pairs, answers))
            for given in some
        }
        if not texts:
            return [[] for _ in pairs]
        way = way_for(policy, world)
        found = beta * log_ratios(policy.to(world.device), reference.to(world.device), list(texts.values()), way)
        reward = dict(zip(texts, found.double().tolist()))
        return [[reward[i, given.text, given.stopped] for given in some] for i, some in enumerate(answers)]

    return score


def ids_of(pair: Pair, given: Answer, tokenizer: Tokenizer, context: int) -> Ids:
    """The answer behind its prompt, which loses its beginning where both do not fit."""
    end = tokenizer.end_of_text
    answer = tokenizer.encode(given.text) + [end] * given.stopped or [end]
    room = context - len(answer)
    if room < 1:
        raise UserError(
            f"row {pair.row}: an answer of {len(answer)} tokens is too long for the context of the reward model"
        )
    return Ids((tokenizer.encode(pair.prompt) or [end])[-room:], answer, [])
