"""The tests that medzoo's own models pass, for ours."""

import medzoo


def test_example_resnet():
    medzoo.check_model("example_resnet")
