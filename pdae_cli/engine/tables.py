"""Codes for other programs: CSV for spreadsheets, .npy and .npz for NumPy."""

from __future__ import annotations

import csv
import io
import sys
import zipfile

import torch
from torch import Tensor

from .codes import Codes

EPOCH = (1980, 1, 1, 0, 0, 0)  # of a zip's members: the same codes make the same file


def to_csv(codes: Codes) -> bytes:
    """A line a picture: source, z0, z1 …; nine digits, which give every float32 back."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["source", *(f"z{column}" for column in range(codes.z.shape[1]))])
    for source, z in zip(codes.sources, codes.z.tolist(), strict=True):
        table.writerow([source, *(f"{value:.9g}" for value in z)])
    return text.getvalue().encode("utf-8", "backslashreplace")


def to_npy(codes: Codes) -> bytes:
    """z as a NumPy array file, (N, D) float32."""
    return _array(codes.z)


def to_npz(codes: Codes) -> bytes:
    """z, what there is of x_T and eps_T, and the sources, as a NumPy archive."""
    arrays = {name: _array(tensor) for name, tensor in codes.tensors().items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (arrays | {"sources": _strings(codes.sources)}).items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", EPOCH), data)
    return buffer.getvalue()


def _array(tensor: Tensor) -> bytes:
    order = "<" if sys.byteorder == "little" else ">"
    data = tensor.to(torch.float32).contiguous().numpy().tobytes()
    return _npy(f"{order}f4", tuple(tensor.shape), data)


def _strings(texts: tuple[str, ...]) -> bytes:
    """An array of strings, each as long as the longest, in UTF-32."""
    width = max([1, *map(len, texts)])
    data = "".join(text.ljust(width, "\0") for text in texts).encode("utf-32-le", "replace")
    return _npy(f"<U{width}", (len(texts),), data)


def _npy(kind: str, shape: tuple[int, ...], data: bytes) -> bytes:
    """The NPY format, version 1.0: magic, length, a Python literal padded to 64, the numbers."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data
