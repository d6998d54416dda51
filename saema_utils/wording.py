"""Numbers, columns and names as pages show them: one way for all, and words that a person would use."""

from __future__ import annotations

import re
from typing import Any

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
#: Columns whose own name says too little; of all others the underscores become spaces.
HEADINGS = {
    "alpha": "dose",
    "alpha_beyond": "best dose beyond scaling",
    "alpha_high": "to",
    "alpha_low": "from",
    "alpha_star": "best dose",
    "aedp": "pole distance",
    "ami": "agreement with words",
    "ami_family": "agreement with families",
    "betti1": "holes",
    "ce_clean": "loss, untouched",
    "ce_recovered": "recovered",
    "ce_spliced": "loss, rebuilt",
    "ce_tokens": "predictions",
    "ce_zero_ablated": "loss, zeros",
    "circularity_p": "p of circularity",
    "cyclic_order": "neighbours in order",
    "d_sae": "latents",
    "dead_fraction": "share dead",
    "explained_variance": "variance explained",
    "fvu": "unexplained",
    "gain": "gain at best dose",
    "gain_beyond": "gain beyond scaling",
    "gain_scaling": "gain of scaling",
    "high": "to",
    "homogeneity_truth": "homogeneity of the truth",
    "i_squared": "I²",
    "intrinsic_dimension": "dimension",
    "kl": "KL divergence",
    "l0": "active latents",
    "low": "from",
    "mse": "squared error",
    "n_latents": "latents",
    "n_local": "clusters",
    "n_prompts": "prompts",
    "n_tokens": "tokens",
    "noise_rms": "noise / RMS",
    "p_holm": "p, corrected",
    "p_value": "p",
    "plane_share": "variance in the plane",
    "q": "Q",
    "rms": "RMS",
    "separation_scale_free": "separation",
    "variance_share": "variance in the plane",
}
#: Values whose identifier says too little.
VALUES = {
    "ami": "agreement with words",
    "ami_token": "agreement with token texts",
    "best dose alpha*": "best dose",
    "best dose alpha*, scaling fitted beside": "best dose, scaling fitted beside",
    "geodesic_scale_free": "way between poles, scale-free",
    "mst_weight_scale_free": "tree weight, scale-free",
    "n_local": "clusters",
    "pca": "PCA",
    "sae": "SAE",
}
#: The sign beside each word that judges; the word always stands with it. Here, below all that judges, for every page
#: and figure has the same.
SIGNS = {
    "supported": "✓",
    "reproduced, not learned": "=",
    "no effect of size m": "○",
    "contradicted": "✗",
    "depends on the analysis": "±",
    "too few units": "?",
    "yes": "✓",
    "no": "✗",
    "not replayed": "–",
    "higher": "↑",
    "lower": "↓",
    "unclear": "~",
    "stratified": "≠",
    "smooth": "=",
}
#: What a number is followed by and never parted from.
UNITS = "%", "°", "ms", "s", "min", "h", "kB", "MB", "GB", "KiB", "MiB", "GiB", "RMS", "nats"
_NEGATIVE = re.compile(r"(?<![\w.-])-(?=\.?\d)")
_NOTHING = re.compile(r"(?<![\w.])[-+](?=0(\.0+)?(?![\w.]*\d))")
_EXPONENT = re.compile(r"(?<![\w.])([-−]?)(\d(?:\.\d+)?)e([-+]\d+)\b")
_UNIT = re.compile(rf"(?<=\d) ?(?=%)|(?<=\d) (?=(?:{'|'.join(UNITS)})(?!\w))|(?<=×) (?=\d)|(?<=\d) (?=×)")
_TO = re.compile(r"(?<=[\d%]) to (?=[+−]?\.?\d)")
_NAME = re.compile(r"\b[a-z0-9]+(_[a-z0-9]+)+\b")
_IDENTIFIER = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")


def heading(column: str) -> str:
    """What stands above a column of that name.

    >>> heading("p_holm"), heading("median_norm"), heading("alpha*")
    ('p, corrected', 'median norm', 'alpha*')
    """
    return HEADINGS.get(column, in_prose(column.replace("_", " ")))


def in_words(value: str) -> str:
    """A name that the code uses, in words; other texts as they are.

    >>> in_words("random_dictionary"), in_words("mst_weight_scale_free"), in_words("New_York is big")
    ('random dictionary', 'tree weight, scale-free', 'New_York is big')
    """
    return VALUES.get(value, value.replace("_", " ") if _IDENTIFIER.fullmatch(value) else value)


def told(line: str) -> str:
    """The line of a finding: its numbers as in prose, names that the code uses in words, and intervals in one piece.

    >>> told("random_dictionary -0.00, New_York 0.2 (-0.1 to 0.5), 2% (1% to 3%)").replace("\\xa0", "~")
    'random dictionary 0.00, New_York 0.2 (−0.1~to~0.5), 2~% (1~%~to~3~%)'
    """
    return _TO.sub("\xa0to\xa0", in_prose(_NAME.sub(lambda found: in_words(found[0]), line)))


def in_prose(text: str) -> str:
    """A line of text with its numbers written as everywhere: a true minus, no signed nothing, powers of ten, one blank
    before a unit, at which no line ends.

    >>> in_prose("-0.3 (-0.00 to +0.2), 1990-05").replace("\\xa0", "~")
    '−0.3 (0.00 to +0.2), 1990-05'
    >>> in_prose("6.9e-05 of 95%, × 1.2 in 12 min").replace("\\xa0", "~")
    '6.9~×~10⁻⁵ of 95~%, ×~1.2 in 12~min'
    """
    text = _EXPONENT.sub(lambda found: found[1] + power_of_ten(found[2], int(found[3])), text)
    return _UNIT.sub("\xa0", _NEGATIVE.sub("−", _NOTHING.sub("", text)))


def power_of_ten(mantissa: str, exponent: int) -> str:
    """A number far from one, such as 1.5 × 10⁻⁷."""
    power = f"10{str(exponent).translate(SUPERSCRIPT)}"
    return power if mantissa == "1" else f"{mantissa}\xa0×\xa0{power}"


def signed(word: str) -> str:
    """A word that judges with its sign before it; other words as they are.

    >>> signed("contradicted").replace("\\xa0", " "), signed("months")
    ('✗ contradicted', 'months')
    """
    return f"{SIGNS[word]}\xa0{word}" if word in SIGNS else word


def format_number(value: Any, digits: int = 3) -> str:
    """A number as prose and tables show it: thousands separated, a true minus, never an exponent near one.

    >>> format_number(0.79312), format_number(160000), format_number(-12.0), format_number(-0.0)
    ('0.793', '160,000', '−12', '0')
    """
    if value is None or value != value:
        return "undefined"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if abs(value) == float("inf"):
        return "infinity" if value > 0 else "−infinity"
    if isinstance(value, int) or float(value).is_integer() or abs(value) >= 1000:
        text = f"{value or 0:,.0f}"
    elif abs(value) >= 1e-3:
        text = f"{value:.{digits}g}"
        text = f"{value:,.0f}" if "e" in text else text  # more places before the point than digits
    else:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        text = power_of_ten(mantissa, int(exponent))
    return text.replace("-", "−")
