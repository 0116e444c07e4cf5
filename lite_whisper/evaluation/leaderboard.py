"""The sets of the Open ASR leaderboard, by the names that `lite-whisper evaluate` gives them."""

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
"""The languages of the multilingual track, and the corpora that it has of each."""

SHORT_FORM = {
    f"{BENCHMARK}:ami_cleaned:test": "ami_cleaned_wer",
    f"{EARNINGS22}::test": "earnings22_cleaned_aa_chunked_wer",
    f"{BENCHMARK}:gigaspeech_cleaned:test": "gigaspeech_cleaned_wer",
    f"{BENCHMARK}:librispeech:test.clean": "librispeech_clean_wer",
    f"{BENCHMARK}:librispeech:test.other": "librispeech_other_wer",
    f"{BENCHMARK}:spgispeech:test": "spgispeech_wer",
    f"{BENCHMARK}:voxpopuli_cleaned_aa:test": "voxpopuli_cleaned_aa_wer",
}
"""The sets of the English table, and the tasks under which the Hub takes results of them."""

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
"""What stands for several datasets: the tracks of today, and the eight English sets that they have replaced."""
