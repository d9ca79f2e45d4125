"""What a picture's file says of itself: how it was made, and that a model had a hand in it.

A recipe is a JSON-able dict (no NaN) with at least "command". It is written as JSON: into PNG as an
iTXt chunk "pdae" and XMP, into JPEG and WebP as EXIF and XMP, into GIF as a comment. Nothing of a
source's own metadata is copied but what `keep` holds.
"""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import ExifTags, Image, PngImagePlugin

from .. import __version__
from ..errors import InputError, UsageError

Recipe = dict[str, Any]
Keep = Image.Exif | bytes | None  # a source's EXIF, as read
MAX_BYTES = 1 << 20  # of one piece of metadata; larger ones are neither written nor read
MAX_DEPTH = 8  # of lists and objects in a recipe
SOFTWARE = "pdae"

# https://cv.iptc.org/newscodes/digitalsourcetype/. Of an unknown command too much is said, not too
# little; a picture that was only aligned isn't a model's.
NEWSCODES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MADE, EDITED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
SOURCE_TYPES = {
    "sample": MADE,
    "train dpm": MADE,
    "train latent": MADE,
    "align": None,
    "train encoder": None,
}

NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "pdae": "urn:pdae:recipe/",
}
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DAMAGED = "its EXIF is damaged and can't be kept; leave --keep-exif"

# EXIF 2.32, table 4: what describes a photo. The rest of the first directory is about the layout
# of the file it came in.
DESCRIPTIVE = (
    ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model,
    ExifTags.Base.Software, ExifTags.Base.DateTime, ExifTags.Base.Artist,
    ExifTags.Base.HostComputer, ExifTags.Base.Copyright, ExifTags.Base.Rating,
    ExifTags.Base.XPTitle, ExifTags.Base.XPComment, ExifTags.Base.XPAuthor,
    ExifTags.Base.XPKeywords, ExifTags.Base.XPSubject,
)  # fmt: skip
# Of the Exif directory: what isn't true of the new pixels, and what nobody can move.
OUTDATED = (
    ExifTags.Base.MakerNote, ExifTags.Base.ColorSpace, ExifTags.Base.ExifImageWidth,
    ExifTags.Base.ExifImageHeight, ExifTags.Base.ExifInteroperabilityOffset,
    ExifTags.Base.ComponentsConfiguration, ExifTags.Base.CompressedBitsPerPixel,
)  # fmt: skip


def save_options(format: str, recipe: Recipe | None, keep: Keep) -> dict[str, Any]:
    """What Pillow's `save` takes to write a recipe and what is kept in PNG, JPEG, WEBP or GIF.

    Raises InputError for a recipe of more than MAX_BYTES or EXIF that is damaged, UsageError for
    EXIF in a GIF.
    """
    if format == "GIF" and keep:
        raise UsageError("a GIF can't hold EXIF; leave --keep-exif or write png, jpg or webp")
    options: dict[str, Any] = {}
    exif = _carried_over(keep) if keep else Image.Exif()
    if recipe is not None:
        code = SOURCE_TYPES.get(str(recipe.get("command")), EDITED)
        source_type = None if code is None else NEWSCODES + code
        text = _to_json({"software": SOFTWARE, "digital_source_type": source_type, **recipe})
        packet = _packet(text, source_type)
        if format == "GIF":
            options["comment"] = text.encode()
        elif format == "PNG":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt(SOFTWARE, text)
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", packet)
        else:
            options["xmp"] = packet.encode()
            exif[ExifTags.Base.Software] = SOFTWARE
            if ExifTags.Base.ImageDescription not in exif:  # a kept one is the photographer's
                exif[ExifTags.Base.ImageDescription] = text
    return options | {"exif": exif} if len(exif) else options


def _to_json(facts: Recipe) -> str:
    """ASCII, so that it means the same in every field."""
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    if len(text) > MAX_BYTES:
        raise InputError(
            f"how this picture was made takes {len(text) >> 10} KiB to say; "
            "give fewer inputs or --no-metadata"
        )
    return text


def _packet(text: str, source_type: str | None) -> str:
    """The XMP packet (ISO 16684-1) of a recipe's text."""
    facts = {"xmp:CreatorTool": f"{SOFTWARE} {__version__}", "pdae:recipe": text}
    if source_type:
        facts["Iptc4xmpExt:DigitalSourceType"] = source_type
    names = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in NAMESPACES.items())
    body = "".join(f"<{name}>{escape(value)}</{name}>\n" for name, value in facts.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">\n'
        f'<rdf:Description rdf:about="" {names}>\n{body}</rdf:Description>\n'
        '</rdf:RDF></x:xmpmeta>\n<?xpacket end="r"?>'
    )


def _carried_over(keep: Image.Exif | bytes) -> Image.Exif:
    """The part of a source's EXIF that is true of a picture made from it: upright, in sRGB, without
    thumbnail and MakerNote."""
    source, kept = Image.Exif(), Image.Exif()
    try:
        source.load(keep if isinstance(keep, bytes) else keep.tobytes())
        for tag in DESCRIPTIVE:
            if tag in source:
                kept[tag] = source[tag]
        details = source.get_ifd(ExifTags.IFD.Exif)
        kept[ExifTags.Base.Orientation] = 1
        kept[ExifTags.IFD.Exif] = {tag: details[tag] for tag in details if tag not in OUTDATED}
        if places := source.get_ifd(ExifTags.IFD.GPSInfo):
            kept[ExifTags.IFD.GPSInfo] = dict(places)
        kept.tobytes()  # what can't be written shows here
    except Exception as error:  # EXIF is untrusted, and Pillow raises nearly everything on it
        raise InputError(DAMAGED) from error
    return kept


def exif_of(image: Image.Image) -> Image.Exif | None:
    """An opened picture's EXIF, to `keep`; None for none. Raises InputError for damaged EXIF."""
    if _too_long(image.info.get("exif")):
        raise InputError(DAMAGED)
    try:
        return image.getexif() or None
    except Exception as error:  # as above
        raise InputError(DAMAGED) from error


def exif_tag(image: Image.Image, tag: int) -> Any:
    """One entry of an opened picture's EXIF; None for none, or if it's damaged. Never raises."""
    try:
        exif = exif_of(image)
        return None if exif is None else exif.get(tag)
    except Exception:  # as above: each entry is decoded when it is asked for
        return None


def read_recipe(image: Image.Image) -> Recipe | None:
    """The recipe that was written into an opened picture, or None. Never raises."""
    places = (
        image.info.get(SOFTWARE),
        _xmp(image, f"{{{NAMESPACES['pdae']}}}recipe"),
        exif_tag(image, ExifTags.Base.ImageDescription),
        image.info.get("comment"),
    )
    recipes = (parse_recipe(text) for text in places if text and not _too_long(text))
    return next((one for one in recipes if one and one.get("software") == SOFTWARE), None)


def parse_recipe(text: Any) -> Recipe | None:
    """Parse a recipe's JSON: an object, not nested deeper than we write. None for all else."""
    try:
        recipe = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) and _shallow(recipe, MAX_DEPTH) else None


def _shallow(value: Any, most: int) -> bool:
    """Whether it is nested at most so deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most >= 0 and all(_shallow(one, most - 1) for one in inner)


def read_source_type(image: Image.Image) -> str | None:
    """The IPTC digital source type (a URI) that any program gave an opened picture, or None."""
    if kind := _xmp(image, f"{{{NAMESPACES['Iptc4xmpExt']}}}DigitalSourceType"):
        return kind
    kind = (read_recipe(image) or {}).get("digital_source_type")
    return kind if isinstance(kind, str) else None


def _xmp(image: Image.Image, name: str) -> str | None:
    """A simple property of the picture's XMP: `name` as {namespace}local."""
    packet = image.info.get("xmp")
    if not isinstance(packet, bytes) or _too_long(packet):
        return None
    try:
        text = packet.decode().strip("\0\ufeff \n")
        if "<!DOCTYPE" in text:  # XMP has none; it could define entities that grow without bound
            return None
        found = ElementTree.fromstring(text).iter(f"{{{RDF}}}Description")
    except (ValueError, ElementTree.ParseError):
        return None
    values = (element.get(name) or element.findtext(name) for element in found)
    return next((value for value in values if value), None)


def _too_long(text: object) -> bool:
    return isinstance(text, str | bytes) and len(text) > MAX_BYTES
