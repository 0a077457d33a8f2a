"""Characters for texts that Hypothesis generates."""

from hypothesis import strategies as st

ANY = st.characters(exclude_categories=["Cs"])
"""All characters that UTF-8 can encode: all but surrogates.

With `codec="utf-8"`, Hypothesis would find the same ones by encoding each character, which is slow.
"""
