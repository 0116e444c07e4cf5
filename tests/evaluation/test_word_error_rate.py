"""Error rates against a set whose errors were counted by hand, and against jiwer on the concatenated corpus."""

import random

import jiwer
import pytest

from lite_whisper.common.errors import InputError
from lite_whisper.evaluation.word_error_rate import WordErrorRate, error_rates, word_errors

REFERENCES = ["one two three four", "five", "six seven eight", "nine"]
PREDICTIONS = [
    "one two three four",
    "four five",
    "six eight",
    "nein",
]  # nothing; an insertion; a deletion; a substitution


def test_errors_counted_by_hand() -> None:
    rates = error_rates(REFERENCES, PREDICTIONS)
    assert (rates.substitutions, rates.deletions, rates.insertions, rates.words) == (1, 1, 1, 9)
    assert rates.wer == pytest.approx(100 * 3 / 9)
    # 5 characters inserted with "four ", 6 deleted with "seven ", and two of "nine" are another
    assert rates.cer == pytest.approx(100 * 13 / (18 + 4 + 15 + 4))
    assert [word_errors(*pair) for pair in zip(REFERENCES, PREDICTIONS, strict=True)] == [0, 1, 1, 1]


def test_the_rate_is_that_of_the_corpus_not_a_mean_over_utterances() -> None:
    generator = random.Random(1)
    words = ["one", "two", "three", "four", "five"]
    pairs = [
        (" ".join(generator.choices(words, k=generator.randint(1, 9))), " ".join(generator.choices(words, k=4)))
        for _ in range(50)
    ]
    references, predictions = map(list, zip(*pairs, strict=True))
    rates = error_rates(references, predictions)
    separated = [jiwer.process_words(reference, prediction) for reference, prediction in pairs]
    errors = sum(each.substitutions + each.deletions + each.insertions for each in separated)
    assert rates.wer == pytest.approx(100 * errors / sum(len(reference.split()) for reference in references))
    assert rates.wer != pytest.approx(100 * sum(each.wer for each in separated) / len(separated))
    generator.shuffle(pairs)
    assert error_rates(*map(list, zip(*pairs, strict=True))) == rates


def test_compounds_are_merged_in_either_text() -> None:
    references = ["a white paper", "the ice cream man", "one two"]
    predictions = ["a whitepaper", "the icecream van", "one two"]
    rates = error_rates(references, predictions, "compounds")
    assert (rates.substitutions, rates.deletions, rates.insertions, rates.words) == (1, 0, 0, 9)
    assert rates.wer == pytest.approx(100 / 9)
    assert error_rates(predictions, references, "compounds").wer == pytest.approx(100 / 7)
    assert [word_errors(*pair, "compounds") for pair in zip(references, predictions, strict=True)] == [0, 1, 0]
    plain = error_rates(references, predictions)
    assert plain.substitutions + plain.deletions + plain.insertions == 5
    assert rates.cer == plain.cer


def test_without_compounds_both_ways_count_alike() -> None:
    assert error_rates(REFERENCES, PREDICTIONS, "compounds") == error_rates(REFERENCES, PREDICTIONS)


def test_the_metric_of_the_evaluate_library() -> None:
    metric = WordErrorRate()
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == pytest.approx(3 / 9)
    metric.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2])
    metric.add_batch(predictions=PREDICTIONS[2:], references=REFERENCES[2:])
    assert metric.compute() == pytest.approx(3 / 9)


def test_references_without_a_word() -> None:
    with pytest.raises(InputError, match="the references contain no words"):
        error_rates(["", " "], ["one", "two"])
