"""What a workload is like: described, fitted by models, and drawn anew from them.

Knows: streams of requests, statistics, how BurstGPT (arXiv 2401.17644, KDD 2025) looks at traces:
    burstiness over windows, concurrency, models of sessions and of lengths.
Does not know: files, terminals, plots.

Invariants:
    A stream is read once, in bounded memory: by counts, or by a sample of fixed size.
    Every fitted model comes with how well it fits.
"""

from evenflow.workloads.analysis.bursts import WindowedArrivals, Windows
from evenflow.workloads.analysis.fits import Fit, all_fits
from evenflow.workloads.analysis.fitting import fit_traffic
from evenflow.workloads.analysis.goodness import Goodness, kolmogorov_smirnov
from evenflow.workloads.analysis.model import TrafficModel
from evenflow.workloads.analysis.summary import TraceSummary, summarize

__all__ = [
    "Fit",
    "Goodness",
    "TraceSummary",
    "TrafficModel",
    "WindowedArrivals",
    "Windows",
    "all_fits",
    "fit_traffic",
    "kolmogorov_smirnov",
    "summarize",
]
