"""The invariants I1 to I8 as functions that raise AssertionError (docs/invariants.md).

Each takes a `Subject`, one architecture with one attention kind and one data type, so that the
same function serves the tests and the mutations that must make it fail (mutations.py).

Axes: P = 2 groups, W = 5 rows, R = 10 rows, S = 13 positions, V = 97.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from interlace import Groups, last_groups
from interlace.coupling.attention import coupled_attention, serving
from interlace.coupling.hogwild import HogwildConfig
from interlace.coupling.lanerope import LaneRoPEConfig
from interlace.coupling.mix import Mix, MixConfig
from interlace.coupling.parscale import ParScaleConfig
from interlace.coupling.registry import coupling_class
from invariants.subject import (
    COUNT,
    POSITIONS,
    PROMPTS,
    ROWS,
    START,
    WIDTH,
    Subject,
    assert_close,
    assert_far,
)
from support.architectures import (
    VOCAB,
    attach_fresh,
    bridge_config,
    random_alive,
    random_ids,
    randomise,
)
from support.engine import (
    chosen_logprobs,
    expand,
    left_pad,
    positions_of,
    sample_lockstep,
    starts,
    teacher_force,
)
from support.reference import joint_reference, mix_reference, reference


@torch.no_grad()
def check_i1(subject: Subject) -> None:
    """Freshly attached = base model, bit for bit, at every width."""
    model, ids = subject.base(), random_ids(ROWS, POSITIONS)
    expected = model(ids).logits
    attach_fresh(model, subject.kind, **subject.options)
    assert torch.equal(model(ids).logits, expected), "I1: without groups"
    for width in (w for w in range(1, ROWS + 1) if ROWS % w == 0):
        for alive in (None, random_alive(ROWS // width, width, POSITIONS)):
            groups = Groups(width, alive, 3 + torch.arange(ROWS // width))
            with torch.enable_grad():
                trained = model(ids, groups=groups).logits.detach()
            assert torch.equal(model(ids, groups=groups).logits, expected), (
                f"I1: width {width}, alive {alive is not None}"
            )
            assert torch.equal(trained, expected), f"I1: width {width}, with gradients"


@torch.no_grad()
def check_i2(subject: Subject) -> None:
    """Permuting the rows of a group permutes the outputs."""
    model, ids = subject.attached(), random_ids(ROWS, POSITIONS)
    alive = random_alive(COUNT, WIDTH, POSITIONS)
    order = torch.tensor([3, 0, 4, 1, 2])
    rows = torch.cat([order, WIDTH + order.flip(0)])
    groups = subject.groups(COUNT, POSITIONS, WIDTH, alive, START)
    out = model(ids, groups=groups).logits
    moved_alive = alive.flatten(0, 1)[rows].unflatten(0, (COUNT, WIDTH))
    mixing = groups.mixing
    if mixing is not None:
        orders = torch.stack([order, order.flip(0)])
        mixing = torch.stack([w[:, o][:, :, o] for w, o in zip(mixing, orders, strict=True)])
    # Each group keeps its start: rows move within their groups only.
    moved = model(ids[rows], groups=Groups(WIDTH, moved_alive, START, mixing=mixing)).logits
    if subject.couples:
        assert_far(out, model(ids).logits, "I2: siblings against none")
    assert_close(moved, out[rows], subject.close, "I2")


@torch.no_grad()
def check_i3(subject: Subject) -> None:
    """Nothing in another group, and nothing a finished row does later, changes a row."""
    model, ids = subject.attached(), random_ids(ROWS, POSITIONS)
    alive = torch.ones(COUNT, WIDTH, POSITIONS, dtype=torch.bool)
    ended, end = 1, 6  # row 1 of group 0; the token fed at 6 is the one that finished it
    alive[0, ended, end:] = False
    groups = subject.groups(COUNT, POSITIONS, WIDTH, alive, START)
    out = model(ids, groups=groups).logits

    other = ids.clone()
    other[WIDTH:] = random_ids(WIDTH, POSITIONS, seed=7)
    changed = model(other, groups=groups).logits
    assert_far(changed[WIDTH:], out[WIDTH:], "I3: the changed group itself")
    assert_close(changed[:WIDTH], out[:WIDTH], subject.exact, "I3: another group")

    later = ids.clone()
    later[ended, end:] = random_ids(1, POSITIONS - end, seed=8)
    changed = model(later, groups=groups).logits
    rest = [r for r in range(ROWS) if r != ended]
    assert_far(changed[ended, end:], out[ended, end:], "I3: the finished row itself")
    assert_close(changed[rest], out[rest], subject.exact, "I3: after a row has finished")


@torch.no_grad()
def check_i3_reach(subject: Subject) -> None:
    """A block reads what its reach says and nothing else, at the right distances: against the plain
    loops, on every way that it can go."""
    config = subject.config
    if isinstance(config, LaneRoPEConfig | HogwildConfig):
        _check_lanes(config)
        return
    if isinstance(config, ParScaleConfig):
        _check_streams(subject)
        return
    if isinstance(config, MixConfig):
        _check_mixing(config)
        return
    if subject.kind == "bridge":
        config = bridge_config(num_heads=2, num_kv_heads=1, head_dim=4, reads=subject.reads)
    block: Any = coupling_class(config.kind)(config, 5).double()  # type: ignore[call-arg]
    randomise(block.named_parameters(), seed=13)
    generator = torch.Generator().manual_seed(14)
    x = torch.randn(COUNT * 3, 8, 5, generator=generator, dtype=torch.float64)
    # Row 2 of group 0 ends within its prompt, row 1 within its completion; two rows never end.
    alive = torch.arange(8) < torch.tensor([[8, 6, 3], [5, 8, 7]])[..., None]
    for groups in (Groups(3, alive, START), Groups(3, alive), Groups(3, None, START)):
        expected = reference(block, x, groups)
        assert_close(block(x, groups), expected, 1e-11, "I3: what is read")
        with torch.enable_grad():
            trained = block(x, groups).detach()
        assert_close(trained, expected, 1e-11, "I3: what is read, with gradients")


def _check_lanes(config: LaneRoPEConfig | HogwildConfig) -> None:
    """Attention with lanes, against the plain loops; with prompts in lane 0."""
    theta = torch.tensor([1.0, 0.1], dtype=torch.float64)
    if isinstance(config, LaneRoPEConfig):
        config = replace(config, prompt="first")
    block: Any = coupling_class(config.kind)(config, theta).double()  # type: ignore[call-arg]
    randomise(block.named_parameters(), seed=13)
    generator = torch.Generator().manual_seed(14)
    q, k, v = (
        torch.randn(COUNT * 3, heads, 8, 6, generator=generator, dtype=torch.float64)
        for heads in (4, 2, 2)
    )
    alive = torch.arange(8) < torch.tensor([[8, 6, 3], [5, 8, 7]])[..., None]
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    for groups in (Groups(3, alive, START), Groups(3, alive), Groups(3, None, START)):
        expected = joint_reference(block, q, k, v, groups, 0.4)
        for before in ("sdpa", "eager"):
            with serving(block, groups):
                out, _ = coupled_attention(before, module, q, k, v, None, scaling=0.4)
            assert_close(out, expected, 1e-6, f"I3: what is read, {before}")  # of a softmax in fp32


def _check_streams(subject: Subject) -> None:
    """Streams, against passes of the base model that find a prefix in their cache."""
    subject = replace(subject, name="llama")
    model, base, ids = subject.attached(), subject.base(), random_ids(ROWS, POSITIONS)
    config, whole = subject.config, model.get_submodule(subject.kind)
    assert isinstance(config, ParScaleConfig)
    mask = torch.ones(ROWS, config.prefix + POSITIONS, dtype=torch.long)
    streams = []
    for stream in range(config.streams):
        cache = DynamicCache()
        for n, layer in enumerate(model.get_decoder().layers):
            prefix = layer.get_submodule(subject.kind)
            given = (prefix.prefix_keys[stream], prefix.prefix_values[stream])
            cache.update(*(t.expand(ROWS, -1, -1, -1) for t in given), n)
        positions = torch.arange(POSITIONS)[None]
        decoder = base.get_decoder()
        out = decoder(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
        streams.append(out.last_hidden_state)
    inner = torch.cat(streams, dim=-1) @ whole.in_weight.T + whole.in_bias
    scores = (inner * inner.sigmoid()) @ whole.out_weight.T + whole.out_bias
    shares = scores.exp() / scores.exp().sum(-1, keepdim=True) * 0.8 + 0.2 / config.streams
    hidden = sum(shares[..., p, None] * h for p, h in enumerate(streams))
    expected = base.get_output_embeddings()(hidden)
    assert_close(model(ids).logits, expected, subject.close, "I3: what streams give")


def _check_mixing(config: MixConfig) -> None:
    """What rows are fed, against the plain loops."""
    block = Mix(config, 5)
    generator = torch.Generator().manual_seed(14)
    x, said = (torch.randn(COUNT * 3, 8, n, generator=generator) for n in (5, 11))
    alive = torch.arange(8) < torch.tensor([[8, 6, 3], [5, 8, 7]])[..., None]
    for mask in (alive, None):
        expected = mix_reference(block, x, said, 3, mask)
        by_group = said.unflatten(0, (COUNT, 3)).transpose(1, 2)
        weights = block.weights(by_group, Groups(3, mask).visible())
        got = block.input(x, Groups(3, mask, mixing=weights))
        assert_close(got, expected, 1e-6, "I3: what is mixed")


@torch.no_grad()
def check_i4(subject: Subject) -> None:
    """Row b's token at s reaches row b' only at positions >= s, and there it does."""
    model, ids = subject.attached(), random_ids(ROWS, POSITIONS)
    groups = subject.groups(COUNT, POSITIONS, WIDTH, None, START)
    out = model(ids, groups=groups).logits
    row, at = 2, 6
    changed_ids = ids.clone()
    changed_ids[row, at] = (ids[row, at] + 1) % VOCAB
    changed = model(changed_ids, groups=groups).logits
    assert_close(changed[:, :at], out[:, :at], subject.exact, "I4: earlier positions")
    if not subject.couples:
        assert_close(changed[:row], out[:row], subject.close, "I4: rows that see no siblings")
    for sibling in set(range(WIDTH)) - {row} if subject.couples else ():
        reached = (changed[sibling] - out[sibling]).abs().amax(-1) > 1e-4
        first = at + getattr(subject.config, "strict", False)
        assert reached[first], f"I4: row {row}'s token at {at} does not reach sibling {sibling}"


@torch.no_grad()
def check_i5(subject: Subject) -> None:
    """Width 1, and W identical rows, give the same as no siblings."""
    model, ids = subject.attached(), random_ids(COUNT, POSITIONS)
    alone = model(ids, groups=Groups(1)).logits
    assert torch.equal(model(ids).logits, alone), "I5: without groups"
    with torch.enable_grad():
        trained = model(ids, groups=Groups(1)).logits.detach()
    assert_close(trained, alone, subject.close, "I5: width 1 with gradients")
    repeated = ids.repeat_interleave(WIDTH, 0)
    same = model(repeated, groups=subject.groups(COUNT, POSITIONS, WIDTH)).logits
    if "I5" in subject.claims:
        assert_close(same[::WIDTH], alone, subject.close, "I5: identical rows")
    if {"I2", "I5"} & subject.claims:
        assert_close(same, same[::WIDTH].repeat_interleave(WIDTH, 0), subject.close, "I5: each row")
    different = random_ids(ROWS, POSITIONS)
    nobody = torch.zeros(COUNT, WIDTH, POSITIONS, dtype=torch.bool)
    assert_close(
        model(different, groups=subject.groups(COUNT, POSITIONS, WIDTH, nobody)).logits,
        model(different).logits,
        subject.close,
        "I5: no living sibling",
    )


@torch.no_grad()
def check_i6(subject: Subject) -> None:
    """Prefill once at width 1, expand the cache to W rows and go on = prefill W times."""
    model = subject.attached()
    if subject.config.reads != "position":
        _check_i6_whole(model, subject)
        return
    ids, mask = left_pad(PROMPTS, WIDTH)
    tokens = random_ids(ROWS, 9, seed=9)
    alive = random_alive(COUNT, WIDTH, 9, seed=10)
    groups = subject.groups(COUNT, 9, WIDTH, alive)

    def go_on(cache: DynamicCache) -> Tensor:
        out, seen = [], mask
        for step in range(tokens.shape[1]):
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
            out.append(
                model(
                    tokens[:, step : step + 1],
                    attention_mask=seen,
                    position_ids=positions_of(seen, 1),
                    past_key_values=cache,
                    groups=groups.columns(step, step + 1),
                ).logits
            )
        return torch.cat(out, 1)

    many, once = DynamicCache(config=model.config), DynamicCache(config=model.config)
    for cache, width, every in ((many, WIDTH, 1), (once, 1, WIDTH)):
        model(
            ids[::every],
            attention_mask=mask[::every],
            position_ids=positions_of(mask, ids.shape[1])[::every],
            past_key_values=cache,
            groups=Groups(width, None, starts(COUNT, ids.shape[1])),
        )
    expand(once, WIDTH, model)
    assert_close(go_on(once), go_on(many), subject.close, "I6")


def _check_i6_whole(model: PreTrainedModel, subject: Subject) -> None:
    """Blocks that read earlier positions: what a prompt's columns are does not depend on the width,
    nor on what comes after them."""
    ids, mask = left_pad(PROMPTS, WIDTH)
    length = ids.shape[1]
    positions = positions_of(mask, length)
    alone = model(ids, attention_mask=mask, position_ids=positions).logits
    tokens = random_ids(ROWS, 6, seed=9)
    ids, mask = torch.cat([ids, tokens], 1), torch.cat([mask, torch.ones_like(tokens)], 1)
    alive = random_alive(COUNT, WIDTH, length + 6, seed=10)
    alive[..., :length] = True
    wide = model(
        ids,
        attention_mask=mask,
        position_ids=positions_of(mask, length + 6),
        groups=Groups(WIDTH, alive, starts(COUNT, length)),
    ).logits
    shown = mask[:, :length].bool()
    assert_close(wide[:, :length][shown], alone[shown], subject.close, "I6")


@torch.no_grad()
def check_i7(subject: Subject) -> None:
    """Log-probabilities while sampling = those of the teacher-forced pass, with rows finishing
    early, left padding and several prompts of different lengths."""
    model = subject.attached()
    lengths = torch.tensor([1, 9, 4, 9, 6, 3, 8, 9, 2, 5])
    for share_prefill in (False, True):
        sampled = sample_lockstep(model, PROMPTS, WIDTH, lengths, share_prefill=share_prefill)
        tokens = sampled.input_ids[:, sampled.prompt_length :]
        forced = chosen_logprobs(teacher_force(model, sampled), tokens)
        forced = forced.where(sampled.completion_mask, 0)
        assert_close(forced, sampled.logprobs, subject.close, "I7")


@torch.no_grad()
def check_i7_generate(subject: Subject) -> None:
    """I7 through Hugging Face's generate, whose alive mask Interlace records."""
    model = subject.attached()
    ids, mask = left_pad(PROMPTS, 1)
    stops = [11, 22, *range(30, 45)]  # two of them are prompt tokens: those must not count
    torch.manual_seed(11)
    generated = model.generate(
        ids,
        attention_mask=mask,
        num_return_sequences=WIDTH,
        do_sample=True,
        max_new_tokens=9,
        eos_token_id=stops,
        output_logits=True,
        return_dict_in_generate=True,
    )
    prompt = ids.shape[1]
    tokens = generated.sequences[:, prompt:]
    stopped = torch.isin(tokens, torch.tensor(stops)).cumsum(1)
    counted = stopped - torch.isin(tokens, torch.tensor(stops)).int() == 0
    assert 0 < (~counted).sum() < counted.numel(), "I7: some rows finish early, some do not"
    alive = torch.cat([torch.ones(ROWS, prompt, dtype=torch.bool), stopped == 0], 1)
    mask = torch.cat([mask.repeat_interleave(WIDTH, 0), torch.ones_like(tokens)], 1)
    forced = model(
        generated.sequences,
        attention_mask=mask,
        position_ids=positions_of(mask, mask.shape[1]),
        groups=Groups(
            WIDTH,
            alive.unflatten(0, (COUNT, WIDTH)),
            starts(COUNT, prompt),
            mixing=last_groups(model).mixing,
        ),
    ).logits[:, prompt - 1 : -1]
    seen = torch.stack(generated.logits, 1)
    assert_close(
        chosen_logprobs(forced, tokens)[counted],
        chosen_logprobs(seen, tokens)[counted],
        subject.close,
        "I7, generate",
    )


def check_i8(subject: Subject) -> None:
    """Gradients of one row's log-probability reach its siblings' earlier positions, and nothing
    that could not have changed it."""
    model, ids = subject.attached(), random_ids(ROWS, POSITIONS)
    row, at, ended, end = 2, 9, 1, 6
    late = getattr(subject.config, "strict", False)
    alive = torch.ones(COUNT, WIDTH, POSITIONS, dtype=torch.bool)
    alive[0, ended, end:] = False
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, groups=Groups(WIDTH, alive, START)).logits
    logprob = logits[row, at].float().log_softmax(-1)[ids[row, at + 1]]
    (gradient,) = torch.autograd.grad(logprob, embeddings)
    size = gradient.float().norm(dim=-1)
    largest = size.max().item()
    for sibling in set(range(WIDTH)) - {row}:
        # Farther back it may come to nothing: behind a sliding window, for instance.
        past = range(at - 2, at + 1 - late) if sibling != ended else range(end - 2, end)
        for position in past:
            reached = size[sibling, position].item()
            assert reached > 1e-5 * largest, f"I8: no gradient at {sibling}, {position}"
    none = 1e-6 * largest if subject.moe else 0.0
    for what, part in (
        ("another group", size[WIDTH:]),
        ("later positions", size[:, at + 1 :]),
        ("a finished sibling", size[ended, end:]),
    ):
        assert part.max().item() <= none, f"I8: gradient in {what}: {part.max().item():.3g}"


def check_i8_differences(subject: Subject) -> None:
    """Those gradients are the slopes of the log-probability, by central differences in float64:
    for architectures without norms that compute in float32 whatever they are given."""
    model = replace(subject, dtype=torch.float64).attached()
    ids, alive = random_ids(ROWS, POSITIONS), random_alive(COUNT, WIDTH, POSITIONS)
    row, at, step = 2, 9, 1e-5
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()

    def logprob(inputs: Tensor) -> Tensor:
        logits = model(inputs_embeds=inputs, groups=Groups(WIDTH, alive, START)).logits
        return logits[row, at].log_softmax(-1)[ids[row, at + 1]]

    (gradient,) = torch.autograd.grad(logprob(embeddings), embeddings)
    generator = torch.Generator().manual_seed(12)
    for sibling in range(WIDTH):
        for position in (0, at - 1, at, at + 1):
            direction = torch.zeros_like(embeddings)
            direction[sibling, position] = torch.randn(
                embeddings.shape[-1], generator=generator, dtype=torch.float64
            )
            with torch.no_grad():
                up, down = (logprob(embeddings + s * step * direction) for s in (1, -1))
            slope, expected = (up - down) / (2 * step), (gradient * direction).sum()
            assert_close(expected, slope, 1e-8, f"I8: slope at {sibling}, {position}")


CHECKS = {
    "I1": check_i1,
    "I2": check_i2,
    "I3": check_i3,
    "I3-reach": check_i3_reach,
    "I4": check_i4,
    "I5": check_i5,
    "I6": check_i6,
    "I7": check_i7,
    "I7-generate": check_i7_generate,
    "I8": check_i8,
    "I8-differences": check_i8_differences,
}
