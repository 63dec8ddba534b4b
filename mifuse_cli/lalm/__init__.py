"""Asking an audio-language model about clips, and reading its answers.

=============  ======================================================================================
``answers``    what an answer says: response, text, distribution
``cost``       prices, estimates, budget
``questions``  what is asked: prompts, clips, questions and their keys
``journal``    what was sent and received, in an SQLite file, and which questions are open
``service``    how requests are sent: live or in batches, how fast, until when
``arrays``     from the journal to arrays
=============  ======================================================================================

A room may import from those that stand before it. The names below are all that a step needs, and a notebook that reads
answers; the library that talks to a service is loaded when one is asked.
"""

from mifuse_cli.lalm.answers.elicitation import MODES
from mifuse_cli.lalm.answers.emotion_words import resolver
from mifuse_cli.lalm.answers.parsing import PARSER_VERSION, Parsed, Status, parse_answer
from mifuse_cli.lalm.arrays import USAGE, answer_arrays, observations
from mifuse_cli.lalm.cost.estimate import Estimate, Volume, calibrated, estimate
from mifuse_cli.lalm.cost.prices import Price, price_of, read_prices
from mifuse_cli.lalm.journal.journal import CLIPS_AT_A_TIME, Journal, journal_path
from mifuse_cli.lalm.journal.merging import take_in
from mifuse_cli.lalm.journal.open_questions import OpenQuestions
from mifuse_cli.lalm.questions.clips import LONG_CLIPS, AudioOptions
from mifuse_cli.lalm.questions.dialect import AUDIO_PARTS, TOKEN_LIMITS
from mifuse_cli.lalm.questions.prompts import read_wording
from mifuse_cli.lalm.questions.question_options import QuestionOptions
from mifuse_cli.lalm.service.advice import THINKING
from mifuse_cli.lalm.service.catalogue import listed_models
from mifuse_cli.lalm.service.environment import check_environment
from mifuse_cli.lalm.service.probe import ask_about_a_tone
from mifuse_cli.lalm.service.profiles import Profile, body_problems, header_problems, read_profile
from mifuse_cli.lalm.service.run import run
from mifuse_cli.lalm.service.run_state import RunState
from mifuse_cli.lalm.service.service_options import (
    TRANSPORTS,
    ServiceOptions,
    check_address,
    host_of,
    is_local,
    provider_of,
)

__all__ = [
    "AUDIO_PARTS",
    "CLIPS_AT_A_TIME",
    "LONG_CLIPS",
    "MODES",
    "PARSER_VERSION",
    "THINKING",
    "TOKEN_LIMITS",
    "TRANSPORTS",
    "USAGE",
    "AudioOptions",
    "Estimate",
    "Journal",
    "OpenQuestions",
    "Parsed",
    "Price",
    "Profile",
    "QuestionOptions",
    "RunState",
    "ServiceOptions",
    "Status",
    "Volume",
    "answer_arrays",
    "ask_about_a_tone",
    "body_problems",
    "calibrated",
    "check_address",
    "check_environment",
    "estimate",
    "header_problems",
    "host_of",
    "is_local",
    "journal_path",
    "listed_models",
    "observations",
    "parse_answer",
    "price_of",
    "provider_of",
    "read_prices",
    "read_profile",
    "read_wording",
    "resolver",
    "run",
    "take_in",
]
