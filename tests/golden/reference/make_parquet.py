"""Makes shards in Parquet as img2dataset writes them, and the same samples in a tar file.

    python make_parquet.py --out shards

Needs pyarrow 26.0.1 (Apache-2.0) and Pillow 13.0.0 (MIT-CMU). The columns are those of img2dataset 1.47.0 (MIT) with
`output_format="parquet"`, of which `BufferedParquetWriter` puts a hundred rows into a group.
"""

import argparse
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

GROUP = 5
TEXT, WHOLE, NUMBER = pa.string(), pa.int32(), pa.float64()
META = [("key", TEXT), ("url", TEXT), ("caption", TEXT), ("status", TEXT), ("error_message", TEXT)]
META += [("width", WHOLE), ("height", WHOLE), ("original_width", WHOLE), ("original_height", WHOLE)]
META += [("exif", TEXT), ("sha256", TEXT), ("pwatermark", NUMBER)]


def encoded(number, kind="JPEG"):
    """A picture of one colour."""
    picture = io.BytesIO()
    Image.new("RGB", (40, 50), (20 * number, 255 - 19 * number, 77)).save(picture, kind)
    return picture.getvalue()


def samples():
    """Twelve rows: one is torn, one was not downloaded, one has no caption, one a watermark that is no number."""
    for number in range(12):
        picture, failed = encoded(number), number == 3
        yield {
            "key": f"{number:09}",
            "url": f"https://example.org/{number}.jpg",
            "caption": None if number == 6 else f"field number {number}",
            "status": "failed_to_download" if failed else "success",
            "error_message": "timed out" if failed else None,
            "width": None if failed else 40,
            "height": None if failed else 50,
            "original_width": None if failed else 400,
            "original_height": None if failed else 500,
            "exif": None if failed else "{}",
            "sha256": None,
            "pwatermark": float("nan") if number == 8 else 0.9 if number == 9 else 0.1,
            "jpg": None if failed else picture[:300] if number == 5 else picture,
        }


def write(path, schema, rows, group, compression):
    with pq.ParquetWriter(path, schema, compression=compression) as writer:
        for start in range(0, len(rows), group):
            writer.write_table(pa.Table.from_pylist(rows[start : start + group], schema))


def write_tar(path, rows):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            if row["jpg"] is None:
                continue
            watermark = "NaN" if row["pwatermark"] != row["pwatermark"] else row["pwatermark"]
            files = {"jpg": row["jpg"], "json": f'{{"width": 40, "pwatermark": {watermark}}}'.encode()}
            if row["caption"] is not None:
                files["txt"] = row["caption"].encode()
            for ending, content in files.items():
                info = tarfile.TarInfo(f"{row['key']}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir()
    rows = list(samples())
    write(out / "00000.parquet", pa.schema(META + [("jpg", pa.binary())]), rows, GROUP, "snappy")
    write(out / "metadata.parquet", pa.schema(META), rows, GROUP, "snappy")
    write_tar(out / "00000.tar", rows)
    # What other programs write: no status, several captions, texts that are marked as bytes, or too long, and pictures
    # of two types.
    odd = [("jpg", pa.binary()), ("png", pa.binary()), ("captions", pa.list_(TEXT)), ("txt", pa.binary())]
    rows = [
        {"png": encoded(0, "PNG"), "jpg": encoded(0), "captions": ["one", None, "two"], "txt": b"three"},
        {"png": None, "jpg": None, "captions": ["none"], "txt": None},
        {"png": None, "jpg": encoded(2), "captions": None, "txt": b"caf\xe9"},
        {"png": None, "jpg": encoded(3), "captions": ["a" * (1 << 20) + "b"], "txt": "café".encode()},
        {"png": encoded(4, "PNG"), "jpg": None, "captions": ["a PNG"], "txt": None},
    ]
    write(out / "odd.parquet", pa.schema(odd + [("aesthetic", pa.list_(NUMBER))]), rows, 3, "zstd")
    # The layout of the library `datasets`; the second text is marked as UTF-8, and is not.
    content = pa.array([b"a field", b"caf\xe9", b"the last"], pa.binary()).buffers()
    table = {"image": [{"bytes": encoded(number), "path": "0.jpg"} for number in range(3)]}
    table["text"] = pa.Array.from_buffers(TEXT, 3, content)
    pq.write_table(pa.table(table), out / "datasets.parquet")
    pq.write_table(pa.table({"jpg": [encoded(0)], "caption": ["a field"]}), out / "lz4.parquet", compression="lz4")


if __name__ == "__main__":
    main()
