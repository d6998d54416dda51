"""Chapter 6: every claim judged on the tables of a run, and beside other finished runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "tables": ["card_in_brief", "evidence_of", "neighbouring_verdicts", "record_numbers", "scorecard"],
        "figures": ["certainty_bars", "claims_forest", "verdict_grid"],
        "findings": [
            *["certainty", "count_verdicts", "simulated_verdicts"],
            *["Interval", "decide", "judgement", "load_claims"],
        ],
    },
)
