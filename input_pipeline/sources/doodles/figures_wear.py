"""Things to wear, and one to eat, written as strokes on a 100 by 100 square."""

from input_pipeline.sources.doodles.shapes import (
    Stroke,
    Vary,
    arc,
    both,
    closed,
    cover,
    curve,
    join,
    line,
    poly,
    ring,
)


def glasses(v: Vary) -> list[Stroke]:
    r, y, gap = v(17, 20), 54, v(5, 8)
    x = 50 - gap - r
    if v.maybe(.6):
        lens = ring(x, y, r, r * v(.85, 1))
    else:
        lens = closed(curve(x - r, y - r * .6, x, y - r * .75, x + r, y - r * .6, x + r * .9,
                            y + r * .4, x, y + r * .75,
                            x - r * .9, y + r * .4, x - r, y - r * .6))
    strokes = [*both(lens), arc(50, y - 3, gap + 1, 7, 190, 350)]
    if v.maybe(.6):
        strokes += both(curve(x - r, y - 5, x - r - 2, y - 20, x - r + 8, y - 32))
    else:
        strokes += both(line(x - r, y - 4, x - r - 9, y - 8))
    if v.maybe(.5):
        for side in (x, 100 - x):
            strokes += [line(side - 7, y + 3, side + 2, y - 7),
                        line(side - 1, y + 5, side + 6, y - 2)]
    return strokes


def ice_cream(v: Vary) -> list[Stroke]:
    scoops, half = v.pick(1, 1, 2, 3), v(18, 23)
    strokes = [poly(50 - half, 50, 50 + half, 50, 50, 99)]
    for t in (.3, .62):
        strokes += [line(50 - half * (1 - t), 50 + 49 * t, 50 + half * (1 - t) * (1 - t), 50 + 2),
                    line(50 + half * (1 - t), 50 + 49 * t, 50 - half * (1 - t) * (1 - t), 50 + 2)]
    if scoops == 1:
        y = 36
        strokes.append(cover(closed(join(arc(50, 48, half + 5, 32, 180, 360),
                                         curve(50 + half + 5, 48, 50 + half * .6, 56,
                                               50 + half * .2, 49, 50 - half * .3, 57,
                                               50 - half * .7, 50, 50 - half - 5, 48)))))
        top = 16
    else:
        y = 42
        for i in range(scoops):
            strokes.append(cover(ring(50, y - i * 21, half * (1 - .1 * i) + 1, 15)))
        top = y - (scoops - 1) * 21 - 15
    if v.maybe(.4):
        strokes += [cover(ring(50, top - 3, 5)), curve(51, top - 7, 54, top - 14, 60, top - 15)]
    elif v.maybe(.5):
        strokes += [line(40, top + 12, 43, top + 15), line(55, top + 8, 53, top + 12),
                    line(60, top + 18, 57, top + 20)]
    return strokes


def hat(v: Vary) -> list[Stroke]:
    half, top, base = v(22, 28), v(16, 28), v(68, 74)
    strokes = [ring(50, base, v(44, 49), v(9, 13))]
    if v.maybe(.55):
        flare = v(-4, 5)
        crown = closed(join(line(50 - half, base), line(50 - half - flare, top),
                            curve(50 - half - flare, top, 50, top - 5, 50 + half + flare, top),
                            line(50 + half, base),
                            curve(50 + half, base, 50, base + 6, 50 - half, base)))
    else:
        crown = closed(join(curve(50 - half, base, 50 - half * .9, top + 18, 50 - half * .5, top,
                                  50, top + 4,
                                  50 + half * .5, top, 50 + half * .9, top + 18, 50 + half, base),
                            curve(50 + half, base, 50, base + 6, 50 - half, base)))
    strokes += [cover(crown), curve(50 - half, base - 11, 50, base - 5, 50 + half, base - 11)]
    if v.maybe(.35):
        strokes += [closed(curve(50 + half, base - 10, 50 + half + 12, base - 34, 50 + half + 8,
                                 base - 44,
                                 50 + half - 2, base - 26, 50 + half - 4, base - 9))]
    return strokes


def shoe(v: Vary) -> list[Stroke]:
    ankle, sole = v(22, 30), v(6, 9)
    boot = v.maybe(.3)
    top = ankle - (20 if boot else 0)
    upper = closed(join(line(8, 76, 8, top, 38, top),
                        curve(38, top, 41, ankle + 14, 56, 50, 76, 56, 92, 62, 97, 76)))
    rubber = closed(join(line(5, 76, 98, 76), curve(98, 76, 98, 76 + sole, 92, 77 + sole),
                         line(5, 77 + sole)))
    strokes = [upper, cover(rubber)]
    strokes += [line(41 + 7 * i - 4, ankle + 17 + 5 * i - 2, 41 + 7 * i + 5, ankle + 9 + 5 * i - 2)
                for i in range(3)]
    if v.maybe(.5):
        strokes.append(curve(80, 57, 77, 66, 80, 76))
    if v.maybe(.4):
        strokes.append(curve(14, 66, 34, 68, 54, 60))
    if boot:
        strokes.append(line(8, top + 8, 38, top + 8))
    return strokes


def t_shirt(v: Vary) -> list[Stroke]:
    sleeve, neck = v(36, 44), v(9, 13)
    left = line(50 - neck, 12, 26, 16, 4, sleeve, 18, sleeve + 10, 27, sleeve - 4, 27, 92, 50, 92)
    strokes = [*both(left), arc(50, 11, neck, v(8, 12), 180, 0)]
    kind = v.pick('plain', 'stripes', 'pocket', 'badge')
    if kind == 'stripes':
        strokes += [line(27, y, 73, y) for y in (52, 62, 72)]
    elif kind == 'pocket':
        strokes.append(line(55, 40, 67, 40, 67, 54, 61, 57, 55, 54, 55, 40))
    elif kind == 'badge':
        strokes.append(ring(50, 50, v(8, 12)))
    if v.maybe(.4):
        strokes += both(line(9, sleeve - 7, 22, sleeve + 3))
    return strokes


FIGURES = {
    'glasses': glasses, 'ice-cream': ice_cream, 'hat': hat, 'shoe': shoe, 't-shirt': t_shirt,
}
