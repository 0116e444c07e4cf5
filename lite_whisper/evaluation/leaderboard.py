"""Test sets of the Open ASR leaderboard, under the names that `lite-whisper evaluate` accepts."""

from ..audio.calls import EARNINGS22

ESB = "hf-audio/esb-datasets-test-only-sorted"
BENCHMARK = "hf-audio/open-asr-leaderboard"
LONG_FORM = "hf-audio/asr-leaderboard-longform"
MULTILINGUAL = "hf-audio/open-asr-leaderboard-multilingual-datasets"
CORAAL = "bezzam/coraal"

LANGUAGES = {
    "de": ("fleurs", "mcv"),
    "es": ("fleurs", "mcv", "mls"),
    "fr": ("fleurs", "mcv", "mls"),
    "it": ("fleurs", "mcv", "mls"),
    "pt": ("fleurs", "mls"),
}
"""Languages of the multilingual track and the corpora of each."""

SHORT_FORM = {
    f"{BENCHMARK}:ami_cleaned:test": "ami_cleaned_wer",
    f"{EARNINGS22}::test": "earnings22_cleaned_aa_chunked_wer",
    f"{BENCHMARK}:gigaspeech_cleaned:test": "gigaspeech_cleaned_wer",
    f"{BENCHMARK}:librispeech:test.clean": "librispeech_clean_wer",
    f"{BENCHMARK}:librispeech:test.other": "librispeech_other_wer",
    f"{BENCHMARK}:spgispeech:test": "spgispeech_wer",
    f"{BENCHMARK}:voxpopuli_cleaned_aa:test": "voxpopuli_cleaned_aa_wer",
}
"""Test sets of the English table and the ids of their tasks on the Hub."""

SETS = {
    "leaderboard": list(SHORT_FORM),
    "leaderboard-longform": [
        *(f"{LONG_FORM}:{name}:test" for name in ("earnings21", "earnings22")),
        *(f"{CORAAL}:{name}:test" for name in ("ATL", "DCA", "DCB", "DTA", "LES", "PRV", "ROC", "VLD")),
    ],
    **{
        f"leaderboard-{language}": [f"{MULTILINGUAL}:{corpus}_{language}:test" for corpus in corpora]
        for language, corpora in LANGUAGES.items()
    },
    "esb": [
        f"{ESB}:{name}"
        for name in (
            "voxpopuli:test",
            "ami:test",
            "earnings22:test",
            "gigaspeech:test",
            "librispeech:test.clean",
            "librispeech:test.other",
            "spgispeech:test",
            "tedlium:test",
        )
    ],
}
"""Names that stand for several datasets: the current tracks, and `esb`, the eight earlier English test sets."""
