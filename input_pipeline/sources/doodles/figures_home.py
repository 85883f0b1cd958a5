"""Things on the table and in the cupboard, written as strokes on a 100 by 100 square."""

from input_pipeline.sources.doodles.shapes import (
    Stroke,
    Vary,
    arc,
    both,
    box,
    closed,
    cover,
    curve,
    dot,
    join,
    line,
    poly,
    rays,
    ring,
    solid,
    turn,
)


def cup(v: Vary) -> list[Stroke]:
    left, right, top, low, draw_in = 16, v(64, 70), v(34, 42), v(84, 90), v(0, 8)
    middle, half = (left + right) / 2, (right - left) / 2
    bow = v(13, 17)
    strokes = [arc(right - 3, (top + low) / 2, bow + 4, 19, -78, 78),
               arc(right - 3, (top + low) / 2, bow - 3, 12, -78, 78)]
    body = closed(join(line(left, top), curve(left + draw_in, low - 4, left + draw_in + 6, low,
                                              middle, low + 2,
                                              right - draw_in - 6, low, right - draw_in, low - 4),
                       line(right, top)))
    strokes += [cover(body), cover(ring(middle, top, half, v(5, 8)))]
    if v.maybe(.6):
        strokes += [curve(x, top - 12, x + 4, top - 18, x - 2, top - 24, x + 3, top - 31)
                    for x in ((30, 42, 54) if v.maybe() else (34, 50))]
    if v.maybe(.25):
        strokes.append(arc(middle, low + 1, half + 12, 7, 0, 180))
    elif v.maybe(.3):
        strokes.append(line(left + 3, 58, right - 3, 58))
    return strokes


def key(v: Vary) -> list[Stroke]:
    r = v(15, 19)
    end = v(92, 98)
    strokes = [line(20 + r - 2, 47, end, 47, end, 53, 20 + r - 2, 53)]
    for x in (end - 3, end - 12, *((end - 21,) if v.maybe(.5) else ())):
        deep = v(62, 69)
        strokes.append(line(x, 53, x, deep, x - 5, deep, x - 5, 53))
    if v.maybe(.65):
        strokes += [cover(ring(20, 50, r)), ring(20, 50, r * v(.4, .6))]
    else:
        strokes += [cover(ring(22, 40, 11)), cover(ring(22, 60, 11)), cover(ring(11, 50, 11)),
                    dot(22, 40, 2.5), dot(22, 60, 2.5), dot(11, 50, 2.5)]
    return turn(strokes, v.pick(0, 0, -40, 40, 90) + v(-8, 8))


def scissors(v: Vary) -> list[Stroke]:
    angle, r = v(13, 22), v(10, 13)
    blade = closed(curve(50, 56, 46, 50, 46, 30, 50, 3, 54, 30, 54, 56))
    blade = closed(line(47, 60, 46.5, 30, 50, 2, 53.5, 30, 53, 60))
    handle = [line(47, 58, 49, 68), line(53, 58, 53, 68)]
    loop = [ring(51, 68 + r * 1.2, r * .85, r * 1.25), ring(51, 68 + r * 1.2, r * .5, r * .85)]
    strokes = [*turn([*handle, *loop[: v.pick(1, 2)], blade], angle, 50, 56),
               *turn([*handle, *loop[: 1], cover(blade)], -angle, 50, 56), dot(50, 56, 2)]
    return turn(strokes, v.pick(0, 0, 45, -45) + v(-8, 8))


def chair(v: Vary) -> list[Stroke]:
    seat, top, slats = v(52, 58), v(4, 10), v.pick(1, 2, 3)
    strokes = [line(26, top, 26, 84), line(62, top, 62, seat - 6), line(26, top, 62, top),
               cover(poly(26, seat - 2, 62, seat - 6, 80, seat + 8, 40, seat + 12)),
               line(40, seat + 12, 40, 98), line(80, seat + 8, 80, 94),
               line(64, seat + 11, 64, 82)]
    if v.maybe(.5):
        strokes += [line(26, top + (seat - top - 8) * (i + 1) / (slats + 1) + 2,
                         62,
                         top + (seat - top - 8) * (i + 1) / (slats + 1) + 1) for i in range(slats)]
    else:
        strokes += [line(26 + 36 * (i + 1) / (slats + 1), top, 26 + 36 * (i + 1) / (slats + 1),
                         seat - 4)
                    for i in range(slats)]
    if v.maybe(.3):
        strokes.append(line(40, 84, 80, 81))
    return strokes


def table(v: Vary) -> list[Stroke]:
    back, thick, skew = v(30, 36), v(4, 7), v(14, 22)
    front = back + v(14, 18)
    top = poly(2 + skew, back, 98 - skew * .3, back, 98, front, 2, front)
    strokes = [line(skew + 6, front, skew + 6, 78), line(skew + 11, front, skew + 11, 78),
               line(84, front, 84, 78), line(88, front, 88, 78)]
    strokes += [cover(box(6, front, 12, 96)), cover(box(90, front, 96, 96)),
                cover(top), cover(box(2, front, 98, front + thick))]
    if v.maybe(.4):
        strokes += [cover(box(36, front + thick, 64, front + thick + 12)),
                    dot(50, front + thick + 6, 1.8)]
    if v.maybe(.35):
        strokes += [cover(closed(curve(46, back + 7, 42, back - 4, 47, back - 14, 47, back - 18,
                                       55, back - 18, 55, back - 14,
                                       60, back - 4, 56, back + 7))),
                    curve(51, back - 18, 50, back - 26, 46, back - 32),
                    cover(ring(45, back - 34, 4))]
    return strokes


def lamp(v: Vary) -> list[Stroke]:
    top, low, shade, base = v(14, 19), v(32, 38), v(40, 48), v(16, 22)
    strokes = []
    if v.maybe(.4):
        strokes += [line(48, shade, 48, 90), line(52, shade, 52, 90)]
    else:
        strokes.append(closed(curve(47, shade, 46, shade + 8, 38, 72, 46, 90, 54, 90, 62, 72, 54,
                                    shade + 8,
                                    53, shade)))
    strokes += [cover(poly(50 - base, 97, 50 - base, 91, 50 + base, 91, 50 + base, 97)),
                cover(poly(50 - low, shade, 50 - top, 6, 50 + top, 6, 50 + low, shade))]
    if v.maybe(.5):
        strokes += [line(66, shade, 66, shade + 16), dot(66, shade + 18, 2)]
    if v.maybe(.35):
        strokes += rays(50, 24, 42, 54, 3, 8, 30) + rays(50, 24, 42, 54, 3, 142, 30)
    elif v.maybe(.5):
        strokes += [line(50 - top * .4, 6, 50 - low * .4, shade),
                    line(50 + top * .4, 6, 50 + low * .4, shade)]
    return strokes


def clock(v: Vary) -> list[Stroke]:
    r, alarm = v(34, 38), v.maybe(.45)
    strokes = []
    if alarm:
        strokes += [line(28, 80, 20, 95), line(72, 80, 80, 95)]
        strokes += [closed(s) for s in turn([arc(50, 12, 12, 10, 180, 360)], -38, 50, 52)]
        strokes += [closed(s) for s in turn([arc(50, 12, 12, 10, 180, 360)], 38, 50, 52)]
        strokes.append(line(50, 16, 50, 8))
    strokes.append(cover(ring(50, 52, r)))
    if not alarm and v.maybe(.5):
        strokes.append(ring(50, 52, r + 6))
    strokes += rays(50, 52, r - 7, r - 2, v.pick(4, 12, 12), -90)
    hour, minute = v(0, 360), v(0, 360)
    strokes += rays(50, 52, 0, r * .48, 1, hour) + rays(50, 52, 0, r * .72, 1, minute)
    strokes.append(dot(50, 52, 2))
    return strokes


def candle(v: Vary) -> list[Stroke]:
    half, top = v(8, 11), v(34, 42)
    strokes = [box(50 - half, top, 50 + half, 88), line(50, top, 50, top - 7),
               closed(curve(50, top - 30, 50 - 8, top - 14, 50 - 4, top - 6, 50 + 4, top - 6,
                            50 + 8, top - 14,
                            50, top - 30))]
    if v.maybe(.6):
        strokes.append(curve(50 - half, top + 2, 50 - half * .6, top + 12, 50 - half * .1, top + 4,
                             50 + half * .3, top + 16,
                             50 + half * .8, top + 4))
    if v.maybe(.65):
        strokes += [arc(84, 86, 9, 8, -160, 150),
                    cover(closed(curve(50 - half, 88, 22, 86, 28, 97, 50, 99, 72, 97, 78, 86,
                                       50 + half, 88)))]
    else:
        strokes.append(ring(50, 90, 24, 6))
        strokes.append(cover(line(50 - half, 70, 50 - half, 89, 50, 91, 50 + half, 89, 50 + half,
                                  70)))
    if v.maybe(.35):
        strokes += rays(50, top - 16, 17, 25, 5, -180, 180)
    return strokes


def book(v: Vary) -> list[Stroke]:
    sag, top, low = v(6, 12), v(24, 30), v(74, 82)
    left = closed(join(curve(50, top + sag, 36, top - 2, 20, top - 2, 4, top + 4), line(4, low),
                       curve(4, low, 20, low - 5, 36, low - 4, 50, low + sag)))
    strokes = [*both(left), line(50, top + sag, 50, low + sag)]
    lines = v.pick(3, 4, 5)
    for i in range(lines):
        y = top + 14 + (low - top - 20) * i / lines
        strokes += both(curve(12, y - 4, 26, y - 6, 42, y + 1))
    if v.maybe(.5):
        strokes.append(line(4, low, 4, low + 6, 46, low + sag + 4, 54, low + sag + 4, 96, low + 6,
                            96, low))
    elif v.maybe(.5):
        strokes.append(line(50, top + sag, 56, top + sag + 8, 54, low + sag + 12, 60,
                            low + sag + 6))
    return strokes


def envelope(v: Vary) -> list[Stroke]:
    top, low, tip = v(24, 30), v(76, 82), v(50, 60)
    strokes = [box(4, top, 96, low)]
    if v.maybe(.75):
        strokes.append(line(4, top, 50, tip, 96, top))
        if v.maybe(.5):
            strokes += [line(4, low, 40, tip - 6), line(96, low, 60, tip - 6)]
    else:
        strokes += [line(4, top, 50, top - 26, 96, top), line(4, low, 50, v(48, 54), 96, low)]
    if v.maybe(.3):
        strokes.append(solid(closed(curve(50, tip - 1, 45, tip - 6, 42, tip, 50, tip + 9, 58, tip,
                                          55, tip - 6, 50, tip - 1))))
    return strokes


def hammer(v: Vary) -> list[Stroke]:
    half, head = v(4, 6), v(20, 24)
    strokes = [box(50 - half, 20, 50 + half, 98)]
    if v.maybe(.6):
        shape = closed(join(line(76, head - 12, 76, head + 6, 66, head + 6, 66, head + 3, 38,
                                 head + 3),
                            curve(38, head + 3, 28, head + 2, 16, head + 14), line(20, head - 2),
                            curve(20, head - 2, 28, head - 9, 42, head - 9),
                            line(66, head - 9, 66, head - 12)))
    else:
        shape = poly(20, head - 12, 80, head - 12, 80, head + 10, 20, head + 10)
    strokes.append(cover(shape))
    if v.maybe(.5):
        strokes += [line(50 - half, 76, 50 + half, 74), line(50 - half, 82, 50 + half, 80)]
    return turn(strokes, v.pick(0, 0, 35, 35) + v(-8, 8))


FIGURES = {
    'cup': cup, 'key': key, 'scissors': scissors, 'chair': chair, 'table': table, 'lamp': lamp,
    'clock': clock, 'candle': candle, 'book': book, 'envelope': envelope, 'hammer': hammer,
}
