"""Animals, written as strokes on a 100 by 100 square."""

from input_pipeline.sources.doodles.shapes import (
    Stroke,
    Vary,
    arc,
    both,
    closed,
    cover,
    curve,
    dot,
    join,
    line,
    poly,
    ring,
    solid,
    spiral,
)


def fish(v: Vary) -> list[Stroke]:
    fat, root = v(20, 27), v(66, 70)
    strokes = []
    if v.maybe(.75):
        strokes.append(curve(32, 52 - fat * .9, 44, 48 - fat * 1.35, 58, 50 - fat * .7))
    if v.maybe(.4):
        strokes.append(curve(40, 48 + fat * .95, 46, 52 + fat * 1.3, 54, 50 + fat * .75))
    strokes.append(curve(root - 2, 47, 82, 32, 94, v(24, 30), 88, 50, 94, v(70, 76), 82, 66,
                         root - 2, 53))
    strokes.append(cover(closed(curve(6, 51, 18, 50 - fat * .75, 38, 50 - fat, 58, 50 - fat * .55,
                                      root, 50,
                                      58, 50 + fat * .55, 38, 50 + fat, 18, 50 + fat * .75, 6,
                                      51))))
    strokes.append(dot(20, 46, 2.4) if v.maybe(.6) else ring(20, 46, 3.4))
    if v.maybe(.7):
        strokes.append(arc(24, 50, 8, fat * .72, -55, 55))
    if v.maybe(.5):
        strokes += [arc(x, y, 4, 5, -80, 80) for x, y in ((40, 44), (40, 56), (50, 50))]
    else:
        strokes.append(curve(44, 54, 52, 50, 54, 60, 44, 58))
    strokes.append(curve(7, 54, 12, 56, 15, 55))
    if v.maybe(.25):
        strokes += [ring(0, 38, 3), ring(-3, 27, 4)]
    return strokes


def bird(v: Vary) -> list[Stroke]:
    tail, fat = v(38, 52), v(80, 88)
    strokes = [line(46, fat - 4, 44, 97, 37, 97), line(44, 97, 50, 97),
               line(57, fat - 4, 57, 97, 50, 97), line(57, 97, 63, 97)]
    body = closed(join(curve(36, 17, 27, 19, 22, 28, 24, 38, 20, 54, 28, 74, 48, fat, 68, 76, 80,
                             60),
                       line(98, tail + 8, 92, tail - 4),
                       curve(76, 48, 62, 46, 50, 38, 46, 24, 36, 17)))
    strokes += [line(24, 24, 8, 30, 24, 34) if v.maybe(.6) else poly(24, 23, 9, 25, 23, 34),
                cover(body), dot(34, 27, 2.4)]
    wing = curve(42, 52, 48, 68, 62, 70, 78, 56)
    strokes += [wing, curve(42, 52, 52, 46, 64, 50)]
    if v.maybe(.5):
        strokes.append(curve(52, 57, 57, 62, 64, 59))
    if v.maybe(.3):
        strokes += [line(36, 17, 36, 8), line(39, 17, 43, 9)]
    return strokes


def cat(v: Vary) -> list[Stroke]:
    wide, ear = v(33, 38), v(8, 16)
    strokes = []
    for side in (-1, 1):
        x = 50 + side * wide
        strokes.append(line(x + side * -2, 48, x + side * -1, ear, 50 + side * wide * .3, 30))
        if v.maybe(.5):
            strokes.append(line(x - side * 5, 34, x - side * 5, ear + 11, 50 + side * wide * .52,
                                28))
    strokes.append(cover(ring(50, 58, wide, v(29, 34))))
    kind = v.pick('dots', 'slits', 'closed')
    for side in (-1, 1):
        x = 50 + side * wide * .42
        if kind == 'dots':
            strokes.append(dot(x, 52, 3))
        elif kind == 'slits':
            strokes += [ring(x, 52, 6, 5), line(x, 48, x, 56)]
        else:
            strokes.append(arc(x, 53, 5, 5, 190, 350))
    strokes += [solid(poly(46, 63, 54, 63, 50, 68)),
                curve(38, 73, 44, 77, 50, 68), curve(50, 68, 56, 77, 62, 73)]
    whisker = v(-4, 4)
    for y0, y1 in ((65, 60), (69, 69), (73, 78))[:: v.pick(1, 2)]:
        strokes += both(line(32, y0, 4, y1 + whisker))
    return strokes


def butterfly(v: Vary) -> list[Stroke]:
    up, out, low = v(8, 16), v(6, 12), v(86, 94)
    upper = closed(curve(48, 46, 34, 18, 16, up, out - 2, 26, 14, 48, 34, 54, 48, 50))
    lower = closed(curve(48, 52, 28, 56, 18, 70, 24, low, 38, low - 4, 48, 58))
    strokes = both(lower) + both(upper)
    if v.maybe(.75):
        strokes += both(ring(24, 32, v(4, 7)))
    if v.maybe(.6):
        strokes += both(ring(32, 72, v(3, 5)))
    elif v.maybe(.5):
        strokes += both(line(46, 53, 30, 74))
    strokes.append(cover(ring(50, 54, 3.5, 25)))
    strokes.append(cover(ring(50, 27, 4)))
    strokes += both(curve(49, 23, 46, 12, 38, 6, 35, 9))
    return strokes


def snail(v: Vary) -> list[Stroke]:
    r, neck = v(23, 28), v(8, 14)
    body = closed(curve(98, 90, 80, 82, 40, 80, 28, 70, 26, 48, 20, 42, 10, 46, neck, 62, 18, 82,
                        32, 91, 60, 92, 98, 90))
    strokes = [body, line(14, 45, 6, 28), line(22, 43, 24, 26), dot(6, 27, 2.2), dot(24, 25, 2.2),
               cover(ring(58, 84 - r, r)),
               spiral(58, 84 - r, 2, r, v(60, 120), v.pick(2, 2.5, 3))]
    if v.maybe(.6):
        strokes.append(dot(14, 54, 1.6))
    strokes.append(curve(9, 63, 14, 66, 18, 64))
    if v.maybe(.4):
        strokes.append(line(0, 92, 104, 92))
    return strokes


def spider(v: Vary) -> list[Stroke]:
    r, full = v(15, 19), v.maybe(.5)
    legs = [curve(46, 44, 32, 24, 20, v(14, 22), 8, 30),
            curve(44, 48, 24, 36, 14, 40, 2, v(48, 54)),
            curve(44, 54, 24, 56, 14, 66, 4, v(76, 84)),
            curve(46, 60, 30, 70, 22, 80, 20, v(94, 100))]
    strokes = [s for leg in legs for s in both(leg)]
    if v.maybe(.4):
        strokes.append(line(50, 30, 50, -6))
    abdomen, head = ring(50, 64, r, r * 1.15), ring(50, 40, 10)
    strokes += [solid(abdomen) if full else cover(abdomen), cover(head)]
    strokes += [dot(46, 38, 1.7), dot(54, 38, 1.7)]
    if not full and v.maybe(.6):
        strokes += [line(44, 58, 50, 63, 56, 58), line(43, 67, 50, 72, 57, 67)]
    return strokes


def turtle(v: Vary) -> list[Stroke]:
    top, base = v(20, 30), 70
    strokes = [closed(curve(22, 66, 10, 58, 2, 50, 4, 40, 14, 40, 20, 50, 28, 58)),
               line(88, 66, 100, 72, 88, 74)]
    for x in (32, 70):
        strokes.append(curve(x - 6, base - 2, x - 8, 86, x - 6, 89, x + 5, 89, x + 8, base - 2))
    shell = closed(join(arc(56, base, 37, base - top, 180, 360),
                        curve(93, base, 74, base + 5, 38, base + 5, 19, base)))
    strokes += [cover(shell), dot(9, 46, 1.8), curve(4, 53, 8, 55, 12, 53)]
    high = top + 12
    if v.maybe(.6):
        strokes += [poly(44, high + 8, 56, high, 68, high + 8, 66, high + 24, 46, high + 24),
                    line(44, high + 8, 32, high + 6), line(68, high + 8, 80, high + 6),
                    line(46, high + 24, 40, base), line(66, high + 24, 72, base)]
    else:
        strokes += [curve(40, top + 6, 36, 46, 38, base), curve(57, top, 57, 46, 57, base + 2),
                    curve(72, top + 6, 77, 46, 76, base), curve(24, 52, 56, 46, 90, 52)]
    return strokes


FIGURES = {
    'fish': fish, 'bird': bird, 'cat': cat, 'butterfly': butterfly, 'snail': snail,
    'spider': spider, 'turtle': turtle,
}
