"""Draws the pictures of the training guide's example of a LoRA: large shapes on one dark blue ground.

    python3 lora.py FOLDER

It needs Pillow.
"""

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (50, 90, 220),
    "yellow": (245, 205, 50),
    "purple": (140, 70, 180),
    "orange": (240, 140, 40),
}
GROUND = (20, 20, 60)


def draw(shape, colour, width, height):
    # Twice as large, so that scaling down smooths the edges.
    picture = Image.new("RGB", (2 * width, 2 * height), GROUND)
    pen, radius = ImageDraw.Draw(picture), 0.64 * min(width, height)
    box = [width - radius, height - radius, width + radius, height + radius]
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        left, top, right, bottom = box
        pen.polygon([(width, top), (left, bottom), (right, bottom)], fill=colour)
    return picture.resize((width, height), Image.LANCZOS)


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    random.seed(3)
    for i in range(60):
        name, colour = random.choice(list(COLOURS.items()))
        shape = random.choice(["circle", "square", "triangle"])
        size = random.choice([(256, 256), (320, 256), (256, 320)])
        draw(shape, colour, *size).save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(f"a {name} {shape}\n")


if __name__ == "__main__":
    main()
