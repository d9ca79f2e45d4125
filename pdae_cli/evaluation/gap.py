"""The posterior mean gap (PDAE sec. 3.1, 4.2), and what one step makes of noise."""

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from ..diffusion.noise import generator
from ..engine.arguments import check_timesteps
from ..engine.model import Model
from ..errors import ModelError
from .figures import Finding, Plot, Row, Track, curve, half_interval, laid_out, on_schedule, require

TIMESTEPS = (5, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 990)
SHOWN = (200, 400, 600, 800, 990)  # timesteps of the sheet
FACES = 3  # pictures of the sheet


def gap_residuals(
    model: Model, x_0: Tensor, t: Tensor, eps: Tensor, z: Tensor
) -> tuple[Tensor, Tensor]:
    """Return |eps - eps_theta|^2 and |eps - eps_theta + shift G_psi|^2 of each picture: (N,) both.

    Times the same factor beta^2 / (alpha (1 - alpha_bar)) they are the posterior mean gaps
    |mu~ - mu_theta|^2 and |mu~ - mu_theta - Sigma G_psi|^2 (PDAE sec. 3.2).
    """
    x_0, t, eps = x_0.to(model.device), t.to(model.device), eps.to(model.device)
    eps_theta, gradient = model.predict(model.schedule.add_noise(x_0, t, eps), t, z)
    assert gradient is not None  # z was given
    plain = eps - eps_theta
    shifted = model.schedule.residual(eps, eps_theta, t, gradient)
    return plain.square().sum((1, 2, 3)).cpu(), shifted.square().sum((1, 2, 3)).cpu()


def gap(
    model: Model,
    x_0: Tensor,
    *,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
    track: Track = iter,
) -> Finding:
    """Measure the mean squared posterior mean gap of a value at each t, with normal noise: of
    eps_theta, of PDAE with each picture's own z, and with another picture's z as control.

    Each comes with half of its 95 % interval over the pictures; `closed` is the share of the gap
    that G_psi closes, a ratio of sums, and `known` what of it another picture's z leaves open. The
    sheet shows x^_0 from x_t without and with the shift. Raises ModelError for a model without
    G_psi, UsageError for fewer than two pictures, or timesteps that the schedule hasn't got.
    """
    if model.gradient_estimator is None:
        raise ModelError(f"{model.name} has no G_psi, so there is no gap that it could close")
    require(x_0, 2)
    timesteps = timesteps or on_schedule(model, TIMESTEPS)
    check_timesteps(timesteps, model.schedule.timesteps)
    z = model.z_of(x_0)
    clean = model.by_rows(len(x_0), lambda some: model.latents(x_0[some].to(model.device)))
    eps = torch.randn(clean.shape, generator=generator(seed, "gap"))
    rows = [_at(model, clean, eps, z, t) for t in track(timesteps)]
    lines = [
        curve(rows, "ε_θ alone", "t", "gap"),
        curve(rows, "PDAE", "t", "pdae"),
        curve(rows, "PDAE, another picture's z", "t", "shuffled", dashed=True),
    ]
    middle = [row for row in rows if 0.2 <= row["t"] / model.schedule.timesteps <= 0.8] or rows
    title = f"Posterior mean gap, {len(x_0)} pictures, 95 % intervals"
    plot = Plot(title, "timestep t", "mean squared gap of a value", lines, log_y=True)
    sheet = one_step_sheet(model, clean[:FACES], z[:FACES], seed)
    return Finding("gap", _words(middle), rows, plot, sheet)


def _words(rows: Sequence[Row]) -> str:
    """Say what closes over these rows; the interval of their mean is at most the mean of theirs."""
    own, other, known, unsure = (
        statistics.fmean(row[name] for row in rows)
        for name in ("closed", "closed_shuffled", "known", "known_interval")
    )
    gap = "the posterior mean gap"
    change = f"closes {own:.1%} of {gap}" if own > 0 else f"widens {gap} by {-own:.1%}"
    control = f"closes {other:.1%}" if other > 0 else f"widens it by {-other:.1%}"
    meaning = f"Whether z knows its picture can't be told from {rows[0]['pictures']}"
    if known > unsure:
        meaning = "So z knows its picture"
    elif known == 0:
        meaning = "So z is not used"
    return (
        f"Between t = {rows[0]['t']} and {rows[-1]['t']} G_psi {change} with a picture's own z; "
        f"another picture's z {control}. {meaning}."
    )


def _at(model: Model, x_0: Tensor, eps: Tensor, z: Tensor, t: int) -> Row:
    """Measure a row of `gap`: all pictures at one timestep."""
    steps, s = torch.full((len(x_0),), t), model.schedule

    def measure(rows: slice) -> Tensor:
        own, other = (
            gap_residuals(model, x_0[rows], steps[rows], eps[rows], one[rows])
            for one in (z, z.roll(1, 0))
        )
        return torch.stack([*own, other[1]], dim=1)

    residuals = model.by_rows(len(x_0), measure).double().T.contiguous()
    factor = (s.beta[t] ** 2 / s.alpha[t] / (1 - s.alpha_bar[t])).item()
    row: Row = {"t": t, "pictures": len(x_0)}
    gaps = residuals * factor / x_0[0].numel()
    for name, one in zip(("gap", "pdae", "shuffled"), gaps, strict=True):
        row |= {name: one.mean().item(), f"{name}_interval": half_interval(one)}
    plain, own, other = residuals
    taken = {"closed": plain - own, "closed_shuffled": plain - other, "known": other - own}
    for name, part in taken.items():
        share = (part.sum() / plain.sum()).item()
        # The ratio's error, to first order, is the mean of part - share plain over that of plain.
        interval = half_interval(part - share * plain) / plain.mean().item()
        row |= {name: share, f"{name}_interval": interval}
    return row


def one_step(model: Model, x_t: Tensor, t: int, z: Tensor | None) -> Tensor:
    """Predict x_0 (N, C, H, W) from x_t by one evaluation, with the shift (PDAE eq. 9) if z."""

    def make(rows: slice) -> Tensor:
        x, steps = x_t[rows], torch.full((len(x_t[rows]),), t)
        eps, gradient = model.predict(x, steps, None if z is None else z[rows])
        if gradient is not None:
            eps = model.schedule.level(t).guided(eps, gradient)
        return model.schedule.level(steps, eps).x_0(x.to(eps), eps)

    return model.by_rows(len(x_t), make)


def one_step_sheet(model: Model, clean: Tensor, z: Tensor, seed: int = 0) -> Tensor:
    """Lay out three rows over timesteps for each picture (its latents `clean`): x_t, x^_0 without
    and with the shift."""
    eps = torch.randn(clean.shape, generator=generator(seed, "one step"))
    timesteps = on_schedule(model, SHOWN)
    columns = [torch.stack([clean] * 3)]
    for t in timesteps:
        x_t = model.schedule.add_noise(clean, torch.full((len(clean),), t), eps)
        columns.append(torch.stack([x_t, *(one_step(model, x_t, t, one) for one in (None, z))]))
    cells = torch.stack(columns, dim=2).transpose(0, 1).flatten(0, 2)  # by picture, kind, column
    return laid_out(
        model.by_rows(len(cells), lambda some: model.from_latents(cells[some].to(model.device))),
        columns=len(columns),
        titles=["picture", *(f"t = {t}" for t in timesteps)],
        row_titles=["x_t", "eps_theta", "PDAE"] * len(clean),
    )
