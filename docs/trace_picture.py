"Draws figures/trace.svg for the front page: a sentence of the shipped model at five of its calls, by confidence."

from html import escape
from pathlib import Path

root = Path(__file__).resolve().parents[1]
SOURCE = 'Your men shall fall by the sword, and your mighty in the war.'
ROWS = 5
SIZE, LETTER, LINE = 14, 8.5, 26  # of the type, of a letter's width, of a line's height


def steps(model):
    "The calls that are shown: [(number, [(word, whether it is still noise)])]."
    calls = model.trace(SOURCE, order='confidence')
    shown = [round(i * (len(calls) - 1) / (ROWS - 1)) for i in range(ROWS)]
    end = model.tokenizer.sep_token
    return [(i + 1, [(word, noise) for word, noise in calls[i] if word != end]) for i in shown]


def svg(rows):
    "The picture: a row a call, a column a word; on grey while it is noise."
    columns = zip(*(words for _, words in rows))
    at = [84]
    for column in columns:
        at.append(at[-1] + LETTER * (1 + max(len(word) for word, _ in column)))
    width, height = at[-1] + 10, LINE * (ROWS + 1) + 18
    style = f'font-family="monospace" font-size="{SIZE}"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" {style}>',
        f'<rect width="{width:.0f}" height="{height}" rx="6" fill="white"/>',
        f'<text x="12" y="{LINE}" fill="#0b4f8a">{escape(SOURCE)}</text>',
    ]
    for k, (number, words) in enumerate(rows):
        y = LINE * (k + 2) + 6
        out.append(f'<text x="12" y="{y}" fill="#767676">call {number}</text>')
        for x, end, (word, noise) in zip(at, at[1:], words):
            how = 'fill="#6b6b6b" font-style="italic"' if noise else 'fill="black" font-weight="bold"'
            if noise:
                box = f'x="{x - 3:.1f}" y="{y - SIZE - 1}" width="{end - x - 4:.1f}" height="{SIZE + 6}"'
                out.append(f'<rect {box} rx="3" fill="#e9e9e9"/>')
            out.append(f'<text x="{x:.1f}" y="{y}" {how}>{escape(word)}</text>')
    return '\n'.join([*out, '</svg>', ''])


if __name__ == '__main__':
    from diffuseq import DiffuSeq

    model = DiffuSeq.from_pretrained('basic-english')
    (root / 'figures/trace.svg').write_text(svg(steps(model)), 'utf8')
