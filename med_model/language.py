"""Choose the language of the screen, Chinese or English, and translate messages into it.

The code passes its English messages through `tr`. The Chinese messages are in locale/zh_CN/LC_MESSAGES/med_model.po.
`make messages` compiles the .po file.
"""

import gettext
import locale
import os
from pathlib import Path

from med_model.errors import UserError

DOMAIN = "med_model"
CATALOGUES = Path(__file__).resolve().parent / "locale"
LANGUAGES = ("zh", "en")  # the values of MED_MODEL_LANG
VARIABLES = ("MED_MODEL_LANG", "LC_ALL", "LC_MESSAGES", "LANG")  # the first that is not empty decides the language


def screen_language() -> str:
    """Return `zh_CN` if MED_MODEL_LANG is Chinese, or if it is not set and the locale is Chinese. Else return `en`."""
    named = next((os.environ[name] for name in VARIABLES if os.environ.get(name)), None)
    named = named or locale.getlocale()[0] or ""  # for example "Chinese (Simplified)_China" on Windows
    return "zh_CN" if named.lower().startswith(("zh", "chinese")) else "en"


_catalogue = gettext.translation(DOMAIN, CATALOGUES, [screen_language()], fallback=True)
# argparse translates its own words with the default domain of gettext, into the language that the environment variable
# LANGUAGE names. So set LANGUAGE and the default domain.
os.environ["LANGUAGE"] = screen_language()
gettext.bindtextdomain(DOMAIN, CATALOGUES)
gettext.textdomain(DOMAIN)


def tr(message: str, /, **values: object) -> str:
    """Return the message in the language of the screen, with `values[name]` in place of each `{name}`."""
    text = _catalogue.gettext(message)
    return text.format(**values) if values else text


def check_language() -> None:
    """Raise UserError if MED_MODEL_LANG has a value other than zh or en."""
    value = os.environ.get("MED_MODEL_LANG", "")
    if value and value.lower() not in LANGUAGES:
        raise UserError(tr("MED_MODEL_LANG is {value}. Set it to zh or en.", value=value))
