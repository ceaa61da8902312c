"""GPT-2 whole, as a function from tokens to log-probabilities.

    logits = model(tokens)                  # (B, T, V): sampling, and the plain path
    logp = model(tokens, targets)           # (B, T): log p(target), 0 where the target is IGNORE

The second form is all that training needs: SFT is the mean of `logp`, a preference loss works on its sums per answer,
the reference is the same call without gradients. The projection to the vocabulary, 31 % of GPT-2's matrix products
at 124M parameters, runs only where there is a target.

`positions` and `look` let one row hold more than one line of text (gpt/attention.py has the picture); without them a
row is plain left-to-right text. Modules bear Hugging Face's names, so that reading its weights is a transpose of four.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners": pre-norm blocks, learned positions, GELU in
its tanh form, input and output embeddings tied.

Shapes: B rows, T tokens in a row, C channels, H heads, D = C / H, V vocabulary, N places that have a target.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gpt.head import Targets, Tied, look_up, target_logps

IGNORE = -100  # a target that is not scored; the value F.cross_entropy ignores by default


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. Fields are named as in Hugging Face's config.json; the defaults are GPT-2 124M.

    The second group is as in every GPT-2 that OpenAI published; descendants (Cerebras-GPT, Mistral) differ there.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    dropout: float = 0.0  # Hugging Face has three (embd, resid, attn), in GPT-2 all alike

    layer_norm_epsilon: float = 1e-5
    activation_function: str = "gelu_new"
    n_inner: int | None = None  # width inside the MLP; None: 4 C
    scale_attn_weights: bool = True  # by 1 / sqrt(D)
    scale_attn_by_inverse_layer_idx: bool = False  # by 1 / (layer + 1) as well
    reorder_and_upcast_attn: bool = False  # attention in float32 whatever the other products are
    tie_word_embeddings: bool = True  # the head is the token embedding

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(f"activation_function {self.activation_function!r} is none of {', '.join(ACTIVATIONS)}")


# By their names in Hugging Face's config.json.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(n_positions=256, n_embd=128, n_layer=5, n_head=4),  # data/tiny; its vocabulary is its own
    "gpt2": dict(n_embd=768, n_layer=12, n_head=12),  # 124M parameters
    "gpt2-medium": dict(n_embd=1024, n_layer=24, n_head=16),  # 355M
    "gpt2-large": dict(n_embd=1280, n_layer=36, n_head=20),  # 774M
    "gpt2-xl": dict(n_embd=1600, n_layer=48, n_head=25),  # 1558M
}


# Who may look at whom: a boolean mask, a function (gpt/attention.py), or None where a row is one line of text.
Look = Tensor | Callable[..., Tensor] | None


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.n_head, self.dropout, self.upcast = config.n_head, config.dropout, config.reorder_and_upcast_attn
        self.scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query, key and value of every head at once
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, look: Look, cache=None, wanted: Tensor | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # 3 x (B, H, T, D)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, all tokens so far, D)
        if self.upcast:
            with torch.autocast(x.device.type, enabled=False):
                y = self._attend(q.float(), k.float(), v.float(), look).to(q.dtype)
        else:
            y = self._attend(q, k, v, look)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.c_proj(y if wanted is None else y.flatten(0, 1)[wanted])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, look: Look) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if callable(look):
            return look(q, k, v, dropout, self.scale)
        causal = look is None and q.shape[2] > 1  # one token alone may look at all that came before it
        return F.scaled_dot_product_attention(q, k, v, look, dropout, causal, scale=self.scale)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = nn.Linear(config.n_embd, inner)
        self.c_proj = nn.Linear(inner, config.n_embd)
        self.activation = ACTIVATIONS[config.activation_function]

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, look: Look, cache=None, wanted: Tensor | None = None) -> Tensor:
        y = self.attn(self.ln_1(x), look, cache, wanted)
        x = (x if wanted is None else x.flatten(0, 1)[wanted]) + self.drop(y)
        return x + self.drop(self.mlp(self.ln_2(x)))


class _NothingRandom(TorchFunctionMode):
    """Does not fill tensors: to fill those without memory, torch would load its compiler first, which takes a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return kwargs["tensor"] if function is nn.init.normal_ else function(*args, **(kwargs or {}))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.n_positions, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd, config.layer_norm_epsilon),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self._tie()
        self.apply(self._initialize)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # what each block adds to the residual stream, 2 per layer
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _initialize(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @classmethod
    def of(cls, config: GPTConfig, state: dict[str, Tensor]) -> "GPT":
        """A model of these very tensors, by name, not copies of them; a tied head needs none."""
        model = cls.shape(config)
        if config.tie_word_embeddings:
            state = state | {"lm_head.weight": state["transformer.wte.weight"]}
        model.load_state_dict(state, assign=True)
        model._tie()
        return model

    @classmethod
    def shape(cls, config: GPTConfig) -> "GPT":
        """A model without memory, whose tensors have a shape and nothing else."""
        with torch.device("meta"), _NothingRandom():
            return cls(config)

    def _tie(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.transformer["wte"].get_parameter("weight")

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | Targets | None = None,
        positions: Tensor | None = None,
        look: Look = None,
        squares: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, T, V) of the next token; with `targets`, log p(target) (B, T) in float32, 0 where IGNORE.

        tokens, targets, positions: (B, T) integers; positions default to 0 .. T-1. look: which keys a query may look at;
        default: those not later than itself; as booleans it is broadcast to (B, H, T, T), query by key. To `targets` in the
        form of Targets, which may ask one place for several tokens, the answer is (S,), one for each; with `squares` a pair
        of that and log of the sum of p^2 over the vocabulary, (S,), at the same places.
        """
        if positions is None:
            length = tokens.shape[1]
            if length > self.config.n_positions:
                raise ValueError(f"{length} tokens in a row, but the model has {self.config.n_positions} positions")
            positions = torch.arange(length, device=tokens.device)
        if targets is None:
            return self.lm_head(self.hidden(tokens, positions, look))
        if isinstance(targets, Targets):
            return self._logps(tokens, targets, positions, look, squares)
        places = (targets.flatten() != IGNORE).nonzero()[:, 0]
        asked = Targets(places, torch.arange(len(places), device=places.device), targets.flatten()[places])
        logps = self._logps(tokens, asked, positions, look)
        return torch.zeros(targets.numel(), device=logps.device).index_put((places,), logps).view_as(targets)

    def _logps(self, tokens: Tensor, targets: Targets, positions: Tensor, look: Look, squares: bool = False):
        matrix = self.lm_head.weight
        tied = Tied() if self.config.tie_word_embeddings and matrix.requires_grad else None
        x = self.hidden(tokens, positions, look, wanted=targets.places, tied=tied)  # (N, C)
        found = target_logps(x, matrix, targets.tokens, targets.of, tied=tied, squares=squares)
        return found.float() if isinstance(found, Tensor) else tuple(part.float() for part in found)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        look: Look = None,
        cache: list | None = None,
        wanted: Tensor | None = None,
        tied: Tied | None = None,
    ) -> Tensor:
        """What the head is applied to, (B, T, C). Sampling calls it, to apply the head to the last column alone.

        cache: one object for each layer that keeps keys and values (gpt/cache.py). wanted: (N,) places, counted through
        all rows, that the head will be applied to; then (N, C), and the last layer does nothing for the others but keys
        and values. tied: as that head will be given it.
        """
        gpt = self.transformer
        word = look_up(tokens, gpt["wte"].get_parameter("weight"), tied) if tied else gpt["wte"](tokens)
        x = gpt["drop"](word + gpt["wpe"](positions))
        *blocks, last = gpt["h"].children()
        for i, block in enumerate(blocks):
            x = block(x, look, cache and cache[i])
        return gpt["ln_f"](last(x, look, cache and cache[-1], wanted))
