"""Characters of any text, those of UTF-8: asked for by that codec, Hypothesis encodes each to find them."""

from hypothesis import strategies as st

ANY = st.characters(exclude_categories=["Cs"])
