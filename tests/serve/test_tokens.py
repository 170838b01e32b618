from iclora.serve.tokens import Tokens


def test_tokens_are_those_that_the_base_itself_counts(toyland):
    counter = Tokens("toyland").counter()
    assert (counter.exact, counter.limit) == (True, toyland.max_text_tokens)
    for text in (
        "[MOVIE-SHOTS] A red fox, [SCENE-1] one.",
        "  ",
        "Füchse \u6f22\u5b57 <b>",
        "a" * 900,
    ):
        assert counter.count(text) == toyland.count_tokens(text), text


def test_a_base_whose_tokenizer_is_not_at_hand_is_estimated_and_said_to_be(tmp_path):
    for base in ("nobody/never-fetched", str(tmp_path), "tiny-klein"):
        assert not Tokens(base).counter().exact
