"""DSpark in PyTorch: the drafting stages that release 0731 has in the place of the MTP block.

In one pass the stages propose a block of tokens: the first from the last token that was picked (the anchor), the others from
a noise token at their places. They see what the target's last layers made of the text before (the taps), and one another. A
Markov head then corrects each by the one before it, and a confidence head says how likely it is to be accepted. Parameters
carry the names of the official checkpoint, as in model.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Config, Model, Params, Turn, rms

DECAY = 4.0  # of a place's weight in the loss, in tokens
CROSS_ENTROPY, DISTANCE, CONFIDENCE = 0.1, 0.9, 1.0  # the loss's parts
Goals = tuple[Tensor, Tensor, Tensor]  # right tokens [A, block]; the target's chances [A, block, V]; which places count


class Target(Model):
    """The model that is drafted for, which also says what its last layers made of each token."""

    def __init__(self, config: Config, layers: tuple[int, ...]) -> None:
        super().__init__(config)
        self.round_rows = True
        self._prefixes = [f"layers.{layer}." for layer in layers]
        self._taps: list[Tensor] = []

    def block(self, p: Params, prefix: str, X: Tensor, *rest, **more):  # type: ignore[no-untyped-def]
        out = super().block(p, prefix, X, *rest, **more)
        if prefix in self._prefixes:
            self._taps.append(out[0].mean(1))
        return out

    @torch.no_grad()
    def read(self, p: Params, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Taps [B, S, layers * D], the mean of each layer's streams, and hidden [B, S, D] after the final norm. tokens
        [B, S], S a multiple of 128."""
        self._taps.clear()
        out = self.forward(p, tokens)
        return torch.cat(self._taps, -1).view(*tokens.shape, -1), out.hidden.view(*tokens.shape, -1)


@dataclass(frozen=True)
class Sizes:
    """Of a config.json with DSpark's keys."""

    block: int
    noise: int
    layers: tuple[int, ...]
    rank: int
    stages: int

    @classmethod
    def of(cls, c: Config) -> Sizes:
        return cls(c["dspark_block_size"], c["dspark_noise_token_id"], tuple(c["dspark_target_layer_ids"]),
                   c["dspark_markov_rank"], len(c["compress_ratios"]) - c["num_hidden_layers"])  # fmt: skip


def init_drafter(config: Config, mtp: Params, seed: int) -> Params:
    """To begin with: each stage as the target's MTP block, which has the same form, the rest at random or neutral."""
    generator = torch.Generator().manual_seed(seed)
    sizes, D, V = Sizes.of(config), config["hidden_size"], config["vocab_size"]
    own = ("e_proj", "h_proj", "enorm", "hnorm")  # the MTP block's entry, which a stage has not
    last = f"mtp.{sizes.stages - 1}."
    params: Params = {}
    for stage in range(sizes.stages):
        for name, value in mtp.items():
            part = name.removeprefix("mtp.0.")
            is_exit = part.startswith(("hc_head", "norm."))
            if not part.startswith(own) and (not is_exit or f"mtp.{stage}." == last):
                params[f"mtp.{stage}.{part}"] = value.clone()
    width = len(sizes.layers) * D
    return params | {
        "mtp.0.main_proj.weight": torch.randn(D, width, generator=generator) * width**-0.5,
        "mtp.0.main_norm.weight": torch.ones(D),
        last + "markov_head.markov_w1.weight": torch.randn(V, sizes.rank, generator=generator) * sizes.rank**-0.5,
        last + "markov_head.markov_w2.weight": torch.zeros(V, sizes.rank),
        last + "confidence_head.proj.weight": torch.zeros(1, D + sizes.rank),
    }


class Drafter:
    """The stages and heads over plain parameter dictionaries, which also hold the target's embedding and head."""

    def __init__(self, model: Model) -> None:
        """model: of the config with DSpark's keys; its round_rows counts here, too."""
        self.model, self.sizes = model, Sizes.of(model.config)
        self.last = f"mtp.{self.sizes.stages - 1}."
        self.loads: dict[str, Tensor] = {}  # of the latest pass, as Output.loads

    def context(self, p: Params, taps: Tensor) -> list[Tensor]:
        """Each stage's rows [B, S, d] of texts from their first token on. taps [B, S, layers * D]."""
        main = rms(taps @ p["mtp.0.main_proj.weight"].T, self.model.config["rms_norm_eps"]) * p["mtp.0.main_norm.weight"]
        turn = Turn(self.model.config, torch.arange(taps.shape[1]), False)
        return [self.model.rows(p, f"mtp.{stage}.attn.", main, turn) for stage in range(self.sizes.stages)]

    def backbone(self, p: Params, context: list[Tensor], anchors: Tensor, tokens: Tensor) -> Tensor:
        """Hidden states [A, block, D] before the norm. anchors [A, 2]: text and place; tokens [A]: those that stand there.
        A pass sees the window's rows before its anchor, and all of its own."""
        W, block = self.model.config["sliding_window"], self.sizes.block
        text, place = anchors[:, :1], anchors[:, 1:]
        before = place - W + torch.arange(W)
        ids = torch.full((len(tokens), block), self.sizes.noise)
        ids[:, 0] = tokens
        turn = Turn(self.model.config, place + torch.arange(block), False)
        mask = torch.zeros(len(tokens), 1, 1, W + block).masked_fill(F.pad(before < 0, (0, block))[:, None, None], -torch.inf)
        X = p["embed.weight"][ids].flatten(0, 1)[:, None].expand(-1, self.model.config["hc_mult"], -1)
        for stage, rows in enumerate(context):
            X = self.stage(p, f"mtp.{stage}.", X, rows[text, before.clamp(min=0)], mask, turn)
        return self.model.mix_streams(p, self.last, X).view(*ids.shape, -1)

    def stage(self, p: Params, prefix: str, X: Tensor, rows: Tensor, mask: Tensor, turn: Turn) -> Tensor:
        """An ordinary block on streams [A * block, N, D], whose queries see rows [A, W, d] and those of the block."""
        model, A, block, H = self.model, len(rows), self.sizes.block, self.model.config["num_attention_heads"]
        x, post, comb = model.site(p, prefix, "attn", X)
        x = x.view(A, block, -1)
        _, q = model.queries(p, prefix + "attn.", x, turn)
        keys = torch.cat([rows, model.rows(p, prefix + "attn.", x, turn)], 1)
        scores = (q.flatten(1, 2) @ keys.transpose(1, 2)).view(A, block, H, -1) + mask
        sink = p[prefix + "attn.attn_sink"][:, None].expand(A, block, H, 1)
        weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        seen = (weights.flatten(1, 2) @ keys).view(A, block, H, -1)
        X = model.leave(X, model.output(p, prefix + "attn.", seen, turn).flatten(0, 1), post, comb)
        x, post, comb = model.site(p, prefix, "ffn", X)
        y, load = model.experts(p, prefix + "ffn.", x, torch.zeros(len(x), dtype=torch.long))
        if load is not None:
            self.loads[prefix + "ffn.gate.bias"] = load
        return model.leave(X, y, post, comb)

    def base(self, p: Params, hidden: Tensor) -> Tensor:
        """Logits [..., V] before the Markov head's."""
        normed = rms(hidden, self.model.config["rms_norm_eps"]) * p[self.last + "norm.weight"]
        return normed @ p["head.weight"].T

    def markov(self, p: Params, previous: Tensor) -> tuple[Tensor, Tensor]:
        """What tokens [...] add to the logits of those behind them, [..., V], and their row of the table [..., rank]."""
        row = p[self.last + "markov_head.markov_w1.weight"][previous]
        return row @ p[self.last + "markov_head.markov_w2.weight"].T, row

    def confidence(self, p: Params, hidden: Tensor, row: Tensor) -> Tensor:
        """Logits [...] of being accepted, where all before was."""
        return (torch.cat([hidden, row], -1) @ p[self.last + "confidence_head.proj.weight"].T).squeeze(-1)

    def loss(self, p: Params, context: list[Tensor], anchors: Tensor, tokens: Tensor, goals: Goals) -> Tensor:
        """DeepSpec's, nats and distances: of the proposals behind right ones. goals: of each place of the block."""
        right, chances, counts = goals
        hidden = self.backbone(p, context, anchors, tokens)
        added, row = self.markov(p, torch.cat([tokens[:, None], right[:, :-1]], 1))
        logits = (self.base(p, hidden) + added).log_softmax(-1)
        distance = (logits.exp() - chances).abs().sum(-1)
        sure = self.confidence(p, hidden, row)
        accepted = 1 - distance.detach() / 2
        each = (CROSS_ENTROPY * -logits.gather(-1, right[..., None]).squeeze(-1) + DISTANCE * distance
                + CONFIDENCE * F.binary_cross_entropy_with_logits(sure, accepted, reduction="none"))  # fmt: skip
        weight = counts * torch.exp(-torch.arange(self.sizes.block) / DECAY)
        return (each * weight).sum() / weight.sum()

    @torch.no_grad()
    def propose(self, p: Params, context: list[Tensor], anchors: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Greedy proposals [A, block], and the logits of their confidence."""
        hidden = self.backbone(p, context, anchors, tokens)
        base, previous = self.base(p, hidden), tokens
        drafts, sure = [], []
        for place in range(self.sizes.block):
            added, row = self.markov(p, previous)
            previous = (base[:, place] + added).argmax(-1)
            drafts.append(previous)
            sure.append(self.confidence(p, hidden[:, place], row))
        return torch.stack(drafts, 1), torch.stack(sure, 1)

