"""The context's encoding is injective, and its bytes are fixed."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.crypto.context import Domain, SealContext

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
UUIDS = st.one_of(st.uuids(), st.integers(0, 3).map(lambda n: UUID(int=n)))
CONTEXTS = st.builds(
    SealContext,
    domain=st.sampled_from(Domain),
    region=TEXT,
    tenant=UUIDS,
    container=UUIDS,
    item=UUIDS,
    version=UUIDS,
    number=st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1)),
    content_type=TEXT,
)
HEADERS = st.one_of(st.just(b""), st.binary(max_size=28))


def decoded(raw):
    """The fields of an encoded context: an independent reader, so one encoding has one meaning."""
    fields = []
    while raw:
        size = int.from_bytes(raw[:4], "big")
        fields.append(raw[4 : 4 + size])
        assert len(fields[-1]) == size
        raw = raw[4 + size :]
    domain, header, region, tenant, container, item, version, number, content_type = fields
    context = SealContext(
        Domain(domain.decode().removeprefix("confide/v1/")),
        region.decode(),
        UUID(bytes=tenant),
        UUID(bytes=container),
        UUID(bytes=item),
        UUID(bytes=version),
        int.from_bytes(number, "big"),
        content_type.decode(),
    )
    return context, header


@given(CONTEXTS, HEADERS)
def test_an_encoding_has_exactly_one_meaning(context, header):
    assert decoded(context.encode(header)) == (context, header)


@given(CONTEXTS, CONTEXTS, HEADERS, HEADERS)
def test_equal_encodings_mean_equal_contexts(one, other, header, other_header):
    assert (one.encode(header) == other.encode(other_header)) == ((one, header) == (other, other_header))


@given(CONTEXTS, st.text("ab", min_size=1, max_size=4))
def test_text_never_slides_from_one_field_to_the_next(context, text):
    moved = context._replace(region=context.region + text)
    other = context._replace(content_type=text + context.content_type)
    assert len({moved.encode(b""), other.encode(b""), context.encode(text.encode())}) == 3


def test_the_bytes_are_those_of_the_document():
    context = SealContext(Domain.TURN, "eu", UUID(int=1), UUID(int=2), UUID(int=3), UUID(int=4), 5, "a/b")
    assert context.encode(b"HD").hex() == (
        "0000000f" + b"confide/v1/turn".hex() + "00000002" + b"HD".hex() + "00000002" + b"eu".hex()
        + "".join("00000010" + f"{n:032x}" for n in (1, 2, 3, 4))
        + "00000008" + "0000000000000005" + "00000003" + b"a/b".hex()
    )  # fmt: skip


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_beyond_64_bits_is_refused(number):
    context = SealContext(Domain.TURN, "eu", UUID(int=1), UUID(int=2), UUID(int=3), UUID(int=4), number, "")
    with pytest.raises(ValueError, match="out of range"):
        context.encode(b"")


def test_a_context_is_frozen():
    context = SealContext(Domain.TURN, "eu", UUID(int=1), UUID(int=2), UUID(int=3), UUID(int=4), 0, "")
    with pytest.raises(AttributeError):
        context.region = "us"


def test_the_domains_are_a_closed_list_of_distinct_names():
    assert sorted(domain.name for domain in Domain) == [
        "ANSWER", "CONTAINER_KEY", "CONTAINER_META", "EXTERNAL", "HALF", "INDEX_KEY",
        "OBJECT", "OBJECT_NAME", "REASON", "ROOT_KEY", "STREAM_SECRET", "TURN",
    ]  # fmt: skip
    assert len({domain.value for domain in Domain}) == 12
