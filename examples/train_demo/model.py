"""DeepSeek-V4 in PyTorch for training at small sizes: the equations of the published report, one function an idea.

`transformers`' DeepseekV4ForCausalLM is the reference (tests/examples/test_train_model.py compares the two); this one
trains several times faster, because attention works in blocks of the sliding window, tokens are sorted by expert, and
logits are computed only where the loss needs them. Parameters carry the names of the official checkpoint, except that
a layer's experts are stacked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantise import fake_fp4, fake_fp8, fake_index, fake_row

Config = dict[str, Any]  # a config.json object of the official checkpoint
Params = dict[str, Tensor]

FP8_NAMES = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "shared.w13", "shared.w2", "e_proj", "h_proj", "main_proj")


@dataclass
class Output:
    """hidden: [M, D] of the positions asked for, after the final norm. The losses, loads: for training only.

    streams: [B, S, N, D] before the head's mix, what the MTP block reads. loads: one [E] per score-routed layer, the
    share of tokens that chose each expert. lookup_loss: how little of the first head's attention in CSA layers goes to
    the places that the caller named (-log of the share, nats).
    """

    hidden: Tensor
    streams: Tensor
    index_loss: Tensor
    lookup_loss: Tensor
    loads: dict[str, Tensor]


def init_params(config: Config, seed: int) -> Params:
    """Float32 parameters by name, on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float | None = None) -> Tensor:
        return torch.randn(*shape, generator=generator) * (std if std is not None else shape[-1] ** -0.5)

    c = config
    D = c["hidden_size"]
    params: Params = {
        "embed.weight": normal(c["vocab_size"], D, std=1.0),
        "head.weight": normal(c["vocab_size"], D, std=0.02),
        "norm.weight": torch.ones(D),
    }
    params |= head_mix_params("", c)
    for layer, ratio in enumerate(c["compress_ratios"][: c["num_hidden_layers"]]):
        params |= block_params(f"layers.{layer}.", c, ratio, layer < c["num_hash_layers"], normal)
    for draft in range(c["num_nextn_predict_layers"]):
        p = f"mtp.{draft}."
        params |= block_params(p, c, 0, False, normal) | head_mix_params(p, c)
        params |= {p + "e_proj.weight": normal(D, D), p + "h_proj.weight": normal(D, D)}
        params |= {p + f"{name}.weight": torch.ones(D) for name in ("enorm", "hnorm", "norm")}
    return params


def head_mix_params(prefix: str, c: Config) -> Params:
    n = c["hc_mult"]
    return {
        prefix + "hc_head_fn": torch.zeros(n, n * c["hidden_size"]),
        prefix + "hc_head_base": torch.full((n,), -math.log(n - 1)),  # sigmoid 1/n: the streams' mean
        prefix + "hc_head_scale": torch.ones(1),
    }


def block_params(p: str, c: Config, ratio: int, hashed: bool, normal: Callable[..., Tensor]) -> Params:
    D, H, d, n = c["hidden_size"], c["num_attention_heads"], c["head_dim"], c["hc_mult"]
    Rq, G, Ro, E, width = (c[key] for key in ("q_lora_rank", "o_groups", "o_lora_rank", "n_routed_experts",
                                              "moe_intermediate_size"))  # fmt: skip
    out: Params = {
        p + "attn_norm.weight": torch.ones(D), p + "ffn_norm.weight": torch.ones(D),
        p + "attn.attn_sink": torch.zeros(H), p + "attn.q_norm.weight": torch.ones(Rq),
        p + "attn.kv_norm.weight": torch.ones(d), p + "attn.wq_a.weight": normal(Rq, D),
        p + "attn.wq_b.weight": normal(H * d, Rq), p + "attn.wkv.weight": normal(d, D),
        p + "attn.wo_a.weight": normal(G * Ro, H * d // G), p + "attn.wo_b.weight": normal(D, G * Ro),
        p + "ffn.gate.weight": normal(E, D),
        p + "ffn.experts.w13": normal(E, 2 * width, D), p + "ffn.experts.w2": normal(E, D, width),
        p + "ffn.shared.w13": normal(2 * width, D), p + "ffn.shared.w2": normal(D, width),
    }  # fmt: skip
    if hashed:
        table = torch.stack([_hash_row(token, E, c["num_experts_per_tok"]) for token in range(c["vocab_size"])])
        out[p + "ffn.gate.tid2eid"] = table
    else:
        out[p + "ffn.gate.bias"] = torch.zeros(E)
    for site in ("attn", "ffn"):
        comb = torch.eye(n) * 4.0  # nearly the identity: each stream carries itself on
        out |= {
            p + f"hc_{site}_fn": torch.zeros((2 + n) * n, n * D),
            p + f"hc_{site}_base": torch.cat([torch.full((n,), -math.log(n - 1)), torch.zeros(n), comb.flatten()]),
            p + f"hc_{site}_scale": torch.ones(3),
        }
    if ratio:
        out |= _compressor(p + "attn.compressor.", D, d, ratio, normal)
    if ratio == 4:
        hi, di = c["index_n_heads"], c["index_head_dim"]
        out |= _compressor(p + "attn.indexer.compressor.", D, di, ratio, normal)
        out[p + "attn.indexer.wq_b.weight"] = normal(hi * di, Rq)
        out[p + "attn.indexer.weights_proj.weight"] = normal(hi, D)
    return out


def _hash_row(token: int, n_experts: int, n_active: int) -> Tensor:
    """Distinct experts spread evenly over the vocabulary."""
    step = 1 + (token // n_experts) % (n_experts - 1)
    return torch.tensor([(token + i * step) % n_experts for i in range(n_active)])


def _compressor(p: str, D: int, width: int, ratio: int, normal: Callable[..., Tensor]) -> Params:
    cw = width * (2 if ratio == 4 else 1)
    return {
        p + "ape": torch.zeros(ratio, cw), p + "norm.weight": torch.ones(width),
        p + "wkv.weight": normal(cw, D), p + "wgate.weight": normal(cw, D, std=0.02),
    }  # fmt: skip


def quantised(params: Params) -> Params:
    """The weights as the checkpoint will hold them (FP4 experts, FP8 linears), gradients passing straight through."""
    out = dict(params)
    for name, value in params.items():
        if ".ffn.experts." in name:
            out[name] = fake_fp4(value)
        elif value.ndim == 2 and any(part in name for part in FP8_NAMES) and "compressor" not in name:
            out[name] = fake_fp8(value)
    return out


def rms(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rope_frequencies(c: Config, compressed: bool) -> Tensor:
    """[r/2] in double: plain for window-only layers, YaRN without a magnitude factor for compressed ones."""
    r, y = c["qk_rope_head_dim"], c["rope_scaling"]
    theta = c["compress_rope_theta"] if compressed else c["rope_theta"]
    frequencies = theta ** (-torch.arange(0, r, 2, dtype=torch.float64) / r)
    if not compressed:
        return frequencies

    def correction(rotations: float) -> float:
        return r * math.log(y["original_max_position_embeddings"] / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low, high = max(math.floor(correction(y["beta_fast"])), 0), min(math.ceil(correction(y["beta_slow"])), r - 1)
    ramp = (torch.arange(r // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
    keep = 1 - ramp.clamp(0, 1)
    return frequencies * keep + frequencies / y["factor"] * (1 - keep)


def angles(c: Config, positions: Tensor, compressed: bool) -> tuple[Tensor, Tensor]:
    """cos and sin, [*positions.shape, r/2] each."""
    angle = positions.double()[..., None] * rope_frequencies(c, compressed).to(positions.device)
    return angle.cos().float(), angle.sin().float()


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the last 2 * cos.shape[-1] dims of x by adjacent pairs; cos, sin broadcast against [..., r/2]."""
    r = 2 * cos.shape[-1]
    still, turned = x[..., :-r], x[..., -r:].unflatten(-1, (r // 2, 2))
    a, b = turned[..., 0], turned[..., 1]
    rotated = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    return torch.cat([still, rotated], dim=-1)


def sinkhorn(comb: Tensor, iterations: int, eps: float) -> Tensor:
    """[..., N, N] logits to nearly doubly stochastic matrices."""
    c = comb.softmax(-1) + eps
    c = c / (c.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        c = c / (c.sum(-1, keepdim=True) + eps)
        c = c / (c.sum(-2, keepdim=True) + eps)
    return c


def enter_site(
    X: Tensor, fn: Tensor, base: Tensor, scale: Tensor, gain: Tensor, eps: float, hc_eps: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The normed input [T, D], post [T, N] and comb [T, N, N] of an mHC site for streams X [T, N, D]."""
    n = X.shape[1]
    f = X.flatten(1)
    m = (f @ fn.T) * torch.rsqrt(f.square().mean(-1, keepdim=True) + eps)
    pre = torch.sigmoid(m[:, :n] * scale[0] + base[:n]) + hc_eps
    post = 2 * torch.sigmoid(m[:, n : 2 * n] * scale[1] + base[n : 2 * n])
    comb = (m[:, 2 * n :] * scale[2] + base[2 * n :]).unflatten(-1, (n, n))
    return rms((pre[..., None] * X).sum(1), eps) * gain, post, sinkhorn(comb, iterations, hc_eps)


def leave_site(X: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """The streams after a block's output y [T, D]: X'[k] = post[k] y + sum_j comb[j, k] X[j]."""
    return post[..., None] * y[:, None] + (comb[..., None] * X[:, :, None]).sum(1)


def compress(p: Params, prefix: str, x: Tensor, ratio: int, width: int, eps: float) -> Tensor:
    """Rows [B, S // ratio, width] of x [B, S, D], before the rotation. S is a multiple of ratio."""
    B, S, _ = x.shape
    R = S // ratio
    a = (x @ p[prefix + "wkv.weight"].T).view(B, R, ratio, -1)
    g = (x @ p[prefix + "wgate.weight"].T).view(B, R, ratio, -1) + p[prefix + "ape"]
    if ratio == 4:
        before_a = F.pad(a[:, :-1, :, :width], (0, 0, 0, 0, 1, 0))
        before_g = F.pad(g[:, :-1, :, :width], (0, 0, 0, 0, 1, 0), value=-torch.inf)
        a = torch.cat([before_a, a[..., width:]], dim=2)
        g = torch.cat([before_g, g[..., width:]], dim=2)
    row = (g.softmax(2) * a).sum(2)
    return rms(row, eps) * p[prefix + "norm.weight"]


def index_scores(
    c: Config, p: Params, prefix: str, x: Tensor, qr: Tensor, turn: Turn, ratio: int, rounded: bool
) -> Tensor:
    """The lightning indexer's scores [B, S, R]. Without FP4 rounding the Hadamard transform cancels out."""
    hi, di = c["index_n_heads"], c["index_head_dim"]
    q = rope((qr @ p[prefix + "wq_b.weight"].T).unflatten(-1, (hi, di)), *turn.queries)
    k = rope(compress(p, prefix + "compressor.", x, ratio, di, c["rms_norm_eps"]), *turn.rows(ratio))
    if rounded:
        q, k = fake_index(q), fake_index(k)
    w = (x @ p[prefix + "weights_proj.weight"].T) * (di * hi) ** -0.5
    B, S = x.shape[:2]
    products = torch.relu((q.reshape(B, S * hi, di) @ k.transpose(1, 2)).view(B, S, hi, -1))
    return (w[:, :, None] @ products).squeeze(2)


class Turn:
    """Angles of one batch. positions [S]: multiples of 128 may be skipped where a group begins; or [B, S], of each row."""

    def __init__(self, c: Config, positions: Tensor, compressed: bool) -> None:
        self._c, self._positions, self._compressed = c, positions, compressed
        cos, sin = angles(c, positions, compressed)
        self.queries = cos[..., None, :], sin[..., None, :]  # [S, 1, r/2]
        self.tokens = cos, sin

    def rows(self, ratio: int) -> tuple[Tensor, Tensor]:
        return angles(self._c, self._positions[::ratio][: len(self._positions) // ratio], self._compressed)


class Model:
    """The network over plain parameter dictionaries.

    round_rows: cache rows and the indexer's queries are rounded as the published reference rounds them, gradients passing
    straight through.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.round_rows = False
        self.ratios = config["compress_ratios"]
        self.enter, self.leave = enter_site, leave_site

    def compile(self) -> None:
        """Fuses the element-wise parts; about a minute, then the training step is nearly twice as fast."""
        torch._dynamo.config.cache_size_limit = 64
        self.enter, self.leave = torch.compile(enter_site, dynamic=True), torch.compile(leave_site, dynamic=True)

    def forward(
        self, p: Params, tokens: Tensor, positions: Tensor | None = None, wanted: Tensor | None = None,
        sparse: bool = True, train_index: bool = False, lookups: Tensor | None = None,
    ) -> Output:
        """tokens [B, S] with S a multiple of 128 (pad at the end: nothing looks ahead). wanted: bool [B, S] or all.

        sparse: CSA layers see the index_topk best rows, as at inference; False: all rows. lookups: mixture.Batch's.
        """
        c = self.config
        B, S = tokens.shape
        positions = torch.arange(S, device=tokens.device) if positions is None else positions
        turns = {flag: Turn(c, positions, flag) for flag in (False, True)}
        local = local_mask(positions, c["sliding_window"])
        X = p["embed.weight"][tokens].view(B * S, 1, -1).expand(-1, c["hc_mult"], -1)
        index_loss, lookup_loss, loads = torch.zeros((), device=tokens.device), torch.zeros((), device=tokens.device), {}
        goals = Goals.of(lookups, S, c["sliding_window"]) if lookups is not None and len(lookups) else None
        for layer in range(c["num_hidden_layers"]):
            X, loss, load, lookup = self.block(p, f"layers.{layer}.", X, tokens, turns, local, self.ratios[layer],
                                               sparse, train_index, goals)  # fmt: skip
            index_loss, lookup_loss = index_loss + loss, lookup_loss + lookup
            if load is not None:
                loads[f"layers.{layer}.ffn.gate.bias"] = load
        flat = X if wanted is None else X[wanted.flatten()]
        return Output(self.collapse(p, "", flat), X.view(B, S, *X.shape[1:]), index_loss, lookup_loss,
                      loads)  # fmt: skip

    def draft(self, p: Params, streams: Tensor, tokens: Tensor, wanted: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The MTP block: hidden [M, D] that predicts token t+2 from streams of t and the token t+1.

        streams [B, S, N, D]; tokens [B, S] are the NEXT tokens; wanted as in forward().
        """
        c, eps = self.config, self.config["rms_norm_eps"]
        B, S = tokens.shape
        e = rms(p["embed.weight"][tokens], eps) * p["mtp.0.enorm.weight"]
        h = rms(streams, eps) * p["mtp.0.hnorm.weight"]
        X = (e @ p["mtp.0.e_proj.weight"].T)[:, :, None] + h @ p["mtp.0.h_proj.weight"].T
        positions = torch.arange(S, device=tokens.device)
        turns = {False: Turn(c, positions, False)}
        local = local_mask(positions, c["sliding_window"])
        X, _, load, _ = self.block(p, "mtp.0.", X.flatten(0, 1), tokens, turns, local, 0, True, False, None)
        return self.collapse(p, "mtp.0.", X[wanted.flatten()]), {"mtp.0.ffn.gate.bias": load}

    def collapse(self, p: Params, prefix: str, X: Tensor) -> Tensor:
        """hc_head and the final norm: [M, N, D] to [M, D]."""
        return rms(self.mix_streams(p, prefix, X), self.config["rms_norm_eps"]) * p[prefix + "norm.weight"]

    def mix_streams(self, p: Params, prefix: str, X: Tensor) -> Tensor:
        """hc_head: [M, N, D] to [M, D]."""
        c = self.config
        f = X.flatten(1)
        m = (f @ p[prefix + "hc_head_fn"].T) * torch.rsqrt(f.square().mean(-1, keepdim=True) + c["rms_norm_eps"])
        pre = torch.sigmoid(m * p[prefix + "hc_head_scale"] + p[prefix + "hc_head_base"]) + c["hc_eps"]
        return (pre[..., None] * X).sum(1)

    def block(
        self, p: Params, prefix: str, X: Tensor, tokens: Tensor, turns: dict[bool, Turn], local: Tensor, ratio: int,
        sparse: bool, train_index: bool, goals: Goals | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """One layer on streams X [B*S, N, D]; also the indexer's loss, the experts' load and the lookups' loss."""
        B, S = tokens.shape
        x, post, comb = self.site(p, prefix, "attn", X)
        y, loss, lookup = self.attention(p, prefix + "attn.", x.view(B, S, -1), turns[ratio > 0], local, ratio, sparse,
                                         train_index, goals)  # fmt: skip
        X = self.leave(X, y.flatten(0, 1), post, comb)
        x, post, comb = self.site(p, prefix, "ffn", X)
        y, load = self.experts(p, prefix + "ffn.", x, tokens.flatten())
        return self.leave(X, y, post, comb), loss, load, lookup

    def site(self, p: Params, prefix: str, name: str, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """enter_site() of a block's "attn" or "ffn"."""
        c = self.config
        parts = (p[prefix + f"hc_{name}_{part}"] for part in ("fn", "base", "scale"))
        return self.enter(X, *parts, p[prefix + f"{name}_norm.weight"], c["rms_norm_eps"], c["hc_eps"], c["hc_sinkhorn_iters"])

    def attention(
        self, p: Params, prefix: str, x: Tensor, turn: Turn, local: Tensor, ratio: int, sparse: bool,
        train_index: bool, goals: Goals | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Window rows and compressed rows in one softmax with a sink. x [B, S, D]."""
        c, eps = self.config, self.config["rms_norm_eps"]
        B, S, _ = x.shape
        H, d, W = c["num_attention_heads"], c["head_dim"], c["sliding_window"]
        qr, q = self.queries(p, prefix, x, turn)
        kv = self.rows(p, prefix, x, turn)
        blocks = F.pad(kv, (0, 0, W, 0)).unfold(1, 2 * W, W)  # [B, S/W, d, 2W]
        near = (q.view(B, S // W, W * H, d) @ blocks).view(B, S, H, 2 * W)
        scores = [near + local[:, None], p[prefix + "attn_sink"][None, None, :, None].expand(B, S, H, 1)]
        loss = torch.zeros((), device=x.device)
        rows = None
        if ratio and S >= ratio:
            rows = rope(compress(p, prefix + "compressor.", x, ratio, d, eps), *turn.rows(ratio))
            if self.round_rows:
                rows = fake_row(rows, c["qk_rope_head_dim"])
            seen = visible(S, rows.shape[1], ratio, x.device)
            far = (q.reshape(B, S * H, d) @ rows.transpose(1, 2)).view(B, S, H, -1)
            mask = torch.zeros(S, rows.shape[1], device=x.device).masked_fill(~seen, -torch.inf)
            if ratio == 4:
                mask, loss = self.select(p, prefix + "indexer.", x, qr, turn, mask, far, sparse, train_index)
            scores.append(far + (mask[:, None] if mask.ndim == 2 else mask[:, :, None]))
        weights = torch.cat(scores, -1).softmax(-1)
        lookup = goals.loss(weights) if goals is not None and ratio == 4 else torch.zeros((), device=x.device)
        out = (weights[..., : 2 * W].reshape(B, S // W, W * H, 2 * W) @ blocks.transpose(2, 3)).view(B, S, H, d)
        if rows is not None:
            out = out + (weights[..., 2 * W + 1 :].reshape(B, S * H, -1) @ rows).view(B, S, H, d)
        return self.output(p, prefix, out, turn), loss, lookup

    def queries(self, p: Params, prefix: str, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """The low-rank query [B, S, Rq] of x [B, S, D], and the heads' [B, S, H, d], rotated and scaled."""
        c, eps = self.config, self.config["rms_norm_eps"]
        H, d = c["num_attention_heads"], c["head_dim"]
        qr = rms(x @ p[prefix + "wq_a.weight"].T, eps) * p[prefix + "q_norm.weight"]
        return qr, rope(rms((qr @ p[prefix + "wq_b.weight"].T).unflatten(-1, (H, d)), eps), *turn.queries) * d**-0.5

    def rows(self, p: Params, prefix: str, x: Tensor, turn: Turn) -> Tensor:
        """The window's rows [B, S, d], which are keys and values."""
        c = self.config
        kv = rope(rms(x @ p[prefix + "wkv.weight"].T, c["rms_norm_eps"]) * p[prefix + "kv_norm.weight"], *turn.tokens)
        return fake_row(kv, c["qk_rope_head_dim"]) if self.round_rows else kv

    def output(self, p: Params, prefix: str, heads: Tensor, turn: Turn) -> Tensor:
        """What the heads [B, S, H, d] saw, rotated back and projected: [B, S, D]."""
        cos, sin = turn.queries
        groups = rope(heads, cos, -sin).flatten(2).unflatten(-1, (self.config["o_groups"], -1))
        wo_a = p[prefix + "wo_a.weight"].unflatten(0, (self.config["o_groups"], -1))
        return torch.einsum("bsgi,goi->bsgo", groups, wo_a).flatten(2) @ p[prefix + "wo_b.weight"].T

    def select(
        self, p: Params, prefix: str, x: Tensor, qr: Tensor, turn: Turn, mask: Tensor, far: Tensor, sparse: bool,
        train_index: bool,
    ) -> tuple[Tensor, Tensor]:
        """The mask of the chosen rows, and how far the indexer's distribution is from the attention's (KL, nats).

        The indexer learns from the attention it serves and passes no gradient into it, as in the report.
        """
        scores = index_scores(self.config, p, prefix, x.detach(), qr.detach(), turn, 4, self.round_rows)
        topk = self.config["index_topk"]
        loss = torch.zeros((), device=x.device)
        if train_index:
            with torch.no_grad():
                target = (far.detach() + mask[:, None]).nan_to_num(neginf=-1e30).softmax(-1).sum(2)
                target = target / target.sum(-1, keepdim=True)
            first = 4  # positions before see one row or none
            log_index = (scores + mask.nan_to_num(neginf=-1e30))[:, first:].log_softmax(-1)
            target = target[:, first:]
            loss = (target * (target.clamp_min(1e-9).log() - log_index)).sum(-1).mean()
        if not sparse or scores.shape[-1] <= topk:
            return mask, loss
        with torch.no_grad():
            chosen = (scores + mask).topk(topk, dim=-1).indices
            kept = torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)
            return kept + mask, loss

    def experts(self, p: Params, prefix: str, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [T, D] through the chosen experts and the shared one."""
        c = self.config
        A, E, limit = c["num_experts_per_tok"], c["n_routed_experts"], c["swiglu_limit"]
        s = F.softplus(x @ p[prefix + "gate.weight"].T).sqrt()
        load = None
        if prefix + "gate.tid2eid" in p:
            chosen = p[prefix + "gate.tid2eid"][tokens]
        else:
            chosen = (s.detach() + p[prefix + "gate.bias"]).topk(A, dim=-1).indices
            load = torch.bincount(chosen.flatten(), minlength=E).float() / chosen.numel()
        weight = s.gather(1, chosen)
        weight = c["routed_scaling_factor"] * weight / weight.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=E).tolist()
        source = order // A
        parts = x[source].split(counts)
        w13, w2 = p[prefix + "experts.w13"].unbind(), p[prefix + "experts.w2"].unbind()
        outs = [ffn(part, w13[e], w2[e], limit) for e, part in enumerate(parts) if len(part)]
        routed = torch.cat(outs) * weight.flatten()[order][:, None]
        out = ffn(x, p[prefix + "shared.w13"], p[prefix + "shared.w2"], limit)
        return out.index_add(0, source, routed), load


@dataclass
class Goals:
    """Where the first head of CSA layers should look: of query tokens [K], which columns [K, 2W + 1 + S/4] are right.

    Columns are those of attention(): the tokens of two window blocks, the sink, the compressed rows.
    """

    rows: Tensor
    places: Tensor
    columns: Tensor

    @classmethod
    def of(cls, lookups: Tensor, S: int, window: int) -> Goals:
        """lookups: mixture.Batch's, [K', 3]."""
        queries, index = lookups[:, :2].unique(dim=0, return_inverse=True)
        columns = torch.zeros(len(queries), 2 * window + 1 + S // 4, device=lookups.device)
        query, source = lookups[:, 1], lookups[:, 2]
        near = source - (query // window - 1) * window
        inside = (query - source < window) & (near >= 0)
        columns[index[inside], near[inside]] = 1
        for row in (source // 4, source // 4 + 1):  # windows of compression overlap: a token is in two rows
            seen = row < (query + 1) // 4
            columns[index[seen], 2 * window + 1 + row[seen]] = 1
        return cls(queries[:, 0], queries[:, 1], columns)

    def loss(self, weights: Tensor) -> Tensor:
        """weights [B, S, H, columns]: attention's. Nats."""
        found = (weights[self.rows, self.places, 0] * self.columns).sum(-1)
        return -(found + 1e-4).log().mean()


def ffn(x: Tensor, w13: Tensor, w2: Tensor, limit: float) -> Tensor:
    gate, up = (x @ w13.T).chunk(2, -1)
    return (F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)) @ w2.T


def local_mask(positions: Tensor, window: int) -> Tensor:
    """[S, 2 * window]: 0 for the tokens of the query's window among its block and the one before, else -inf."""
    S = len(positions)
    query = torch.arange(S, device=positions.device)[:, None]
    key = (query // window - 1) * window + torch.arange(2 * window, device=positions.device)
    apart = positions[:, None] - positions[key.clamp(min=0)]
    ok = (key >= 0) & (key <= query) & (apart < window)
    return torch.zeros(S, 2 * window, device=positions.device).masked_fill(~ok, -torch.inf)


def visible(S: int, R: int, ratio: int, device: torch.device) -> Tensor:
    """[S, R]: whether the query may see the compressed row."""
    return torch.arange(R, device=device) < ((torch.arange(S, device=device) + 1) // ratio)[:, None]
