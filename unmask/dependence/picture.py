"""The picture of a dependence profile."""

from __future__ import annotations

from pathlib import Path

from ..rules.profile import Profile


def heat_map(profile: Profile, path: Path, title: str) -> None:
    """Draws the mean movement by class of pairs and masked share, on a logarithmic scale; blank where nothing was.

    Raises:
        ImportError: If matplotlib is not installed (extra `plot`).
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "unmask[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import colors, pyplot

    mean = profile.mean
    shown = mean[mean > 0]
    high = float(shown.max()) if len(shown) else 1.0
    classes = mean.shape[0]
    figure, axes = pyplot.subplots(figsize=(7, min(9.0, 1.8 + 0.22 * classes)), constrained_layout=True)
    scale = colors.LogNorm(vmin=min(high / 2, 1e-4), vmax=high, clip=True)
    picture = axes.imshow(mean.numpy(), aspect="auto", origin="upper", norm=scale, cmap="viridis")
    bounds = [number / profile.fractions for number in range(profile.fractions + 1)]
    axes.set_xticks([number - 0.5 for number in range(len(bounds))], [f"{bound:.0%}" for bound in bounds])
    axes.set_yticks(range(classes), [profile.geometry.label(number) for number in range(classes)], fontsize=7)
    axes.set_xlabel("masked share of the sequence")
    axes.set_ylabel("pair of positions")
    figure.colorbar(picture, label="mutual information, nats")
    axes.set_title(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
