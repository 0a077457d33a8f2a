"""Errors of downloads, in one line."""

import logging

import pytest

from prometar.errors import WorkError
from prometar.io.hub import fetching


def test_an_error_of_a_download_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def fetch() -> None:
        with fetching("hf://a/b", "check the network"):
            logging.getLogger("huggingface_hub").error("trying again")
            raise OSError("no network\nand more")

    with pytest.raises(WorkError, match=r"^cannot fetch hf://a/b \(no network\): check the network$"):
        fetch()
    logging.getLogger("another").error("heard")
    assert caplog.messages == ["heard"]
