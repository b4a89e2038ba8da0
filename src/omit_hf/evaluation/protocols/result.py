"""The result of a protocol."""

from dataclasses import dataclass, field

import numpy as np

from omit_hf.evaluation.retrieval import metrics_table


@dataclass(frozen=True)
class ProtocolResult:
    """Figures of one protocol.

    Args:
        name: name of the protocol, as `--protocol` takes it.
        dataset: the data, in words.
        metrics: names → values; recalls and precisions are in percent.
        folds: metrics of every fold; `metrics` is their mean. Empty without folds.
    """

    name: str
    dataset: str
    metrics: dict[str, float]
    folds: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def mean_of(cls, name: str, dataset: str, folds: list[dict[str, float]]) -> "ProtocolResult":
        """Average every metric over some folds."""
        metrics = {metric: float(np.mean([fold[metric] for fold in folds])) for metric in folds[0]}
        return cls(name, dataset, metrics, folds)

    def markdown(self) -> str:
        """Format a heading, a table of the metrics, and a table of the recalls of every fold."""
        parts = [f"### {self.name}", f"{self.dataset}.", metrics_table(self.metrics)]
        if self.folds:
            names = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
            titles = [f"{name[:3]} R@{name[5:]}" for name in names]
            lines = [" | ".join(["| fold", *titles, "RSUM |"]), "|---" * (len(names) + 2) + "|"]
            for number, fold in enumerate(self.folds, 1):
                cells = [f"{fold[name]:.1f}" for name in (*names, "rsum")]
                lines.append(" | ".join([f"| {number}", *cells]) + " |")
            parts.append("\n".join(lines))
        return "\n\n".join(parts) + "\n"
