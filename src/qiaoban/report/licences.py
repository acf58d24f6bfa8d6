"""Names of licences: SPDX for people and Croissant, the hub's own spelling for its front matter."""

from __future__ import annotations

from difflib import get_close_matches

from qiaoban.errors import UsageError

OWN = "LicenseRef-"  # what SPDX puts before a licence that it does not list
_HUB = {
    **{name: name.lower() for name in ("Apache-2.0", "MIT", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-ND-4.0")},
    **{name: name.lower() for name in ("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0")},
    **{name: name.lower() for name in ("CDLA-Permissive-2.0", "CDLA-Sharing-1.0")},
    "ODC-By-1.0": "odc-by",
    "ODbL-1.0": "odbl",
    "PDDL-1.0": "pddl",
}


def check_licence(name: str) -> str:
    """The licence in its SPDX spelling. `UsageError` where it is neither known here nor begins with `LicenseRef-`."""
    exact = {known.lower(): known for known in _HUB}
    if name.startswith(OWN) and len(name) > len(OWN):
        return name
    if name.lower() in exact:
        return exact[name.lower()]
    near = get_close_matches(name.lower(), exact, n=1)
    meant = f"did you mean {exact[near[0]]}? " if near else ""
    raise UsageError(f"{name!r} is no licence that is known here", hint=f"{meant}Known: {', '.join(_HUB)}; else {OWN}NAME")


def hub_name(licence: str) -> str:
    """What the hub calls a licence of `check_licence`; `other` where it has no name for it."""
    return _HUB.get(licence, "other")


def licence_url(licence: str) -> str:
    """The licence's page at SPDX; a licence that is not listed stands for itself."""
    return licence if licence.startswith(OWN) else f"https://spdx.org/licenses/{licence}.html"
