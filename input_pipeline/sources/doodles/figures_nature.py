"""Plants, sky and weather, written as strokes on a 100 by 100 square."""

from input_pipeline.sources.doodles.shapes import (
    Stroke,
    Vary,
    arc,
    blob,
    box,
    closed,
    cover,
    curve,
    dot,
    join,
    line,
    poly,
    puffs,
    rays,
    ring,
    turn,
)


def tree(v: Vary) -> list[Stroke]:
    half, roots = v(5, 8), v(2, 6)
    trunk = [curve(50 - half, 56, 50 - half, 80, 50 - half - roots, 95),
             curve(50 + half, 56, 50 + half, 80, 50 + half + roots, 95),
             line(50 - half - roots, 95, 50 + half + roots, 95)]
    kind = v.pick('leafy', 'leafy', 'leafy', 'fir')
    if kind == 'fir':
        tiers = v.pick(2, 3)
        wide, step = v(30, 36), 60 / tiers
        crown = [cover(poly(50 - wide + 5 * (tiers - 1 - i), 8 + step * (i + 1) + 8,
                            50, 6 + step * i - 2 * i,
                            50 + wide - 5 * (tiers - 1 - i), 8 + step * (i + 1) + 8))
                 for i in reversed(range(tiers))]
        return trunk + crown
    crown = [cover(puffs(50, 38, v(28, 35), v(25, 31), v.pick(6, 7, 8, 9), v(.14, .24),
                         v(0, 6)))]
    if v.maybe(.4):
        crown += [dot(v(32, 44), v(26, 40), 2.6), dot(v(54, 66), v(24, 34), 2.6),
                  dot(v(46, 58), v(42, 50), 2.6)]
    elif v.maybe(.6):
        crown += [arc(v(36, 42), v(30, 36), 8, 6, 180, 330),
                  arc(v(56, 62), v(40, 46), 8, 6, 0, 150)]
    if v.maybe(.3):
        trunk.append(ring(50, v(72, 78), 2.5, 4))
    return trunk + crown


def flower(v: Vary) -> list[Stroke]:
    petals, heart, reach = v.pick(5, 6, 7, 8), v(7, 10), v(14, 17)
    lean = v(-8, 8)
    strokes = [curve(50, 40, 50 + lean, 68, 50, 97)]
    leaf = closed(curve(50 + lean * .8, 78, 60 + lean, 66, 76 + lean, 62, 68 + lean, 76,
                        50 + lean * .6, 82))
    if v.maybe(.8):
        strokes.append(leaf)
    if v.maybe(.5):
        strokes.append(Stroke(leaf.points * (-1, 1) + (100 + 2 * lean * .7, v(-4, 8))))
    plump = v(.8, 1.15) * reach * 3.4 / petals
    first = v(0, 360 / petals)
    for i in range(petals):
        petal = ring(50, 34 - heart - reach * .72, min(plump, 11), reach * .9)
        strokes += [cover(s) for s in turn([petal], first + 360 * i / petals, 50, 34)]
    strokes.append(cover(ring(50, 34, heart)))
    if v.maybe(.35):
        strokes += [dot(47, 32, 1.5), dot(53, 32, 1.5), arc(50, 34, 4, 4, 25, 155)]
    return strokes


def leaf(v: Vary) -> list[Stroke]:
    wide, tip = v(22, 29), v(-4, 4)
    outline = closed(join(curve(50, 82, 50 - wide * .75, 70, 50 - wide, 48, 50 - wide * .55, 24,
                                50 + tip, 6),
                          curve(50 + tip, 6, 50 + wide * .55, 24, 50 + wide, 48, 50 + wide * .75,
                                70,
                                50, 82)))
    strokes = [outline, curve(50 + tip, 14, 50, 50, 50, 82, v(44, 56), 99)]
    veins, rise = v.pick(3, 4, 5), v(8, 13)
    for i in range(veins):
        y = 32 + 40 * i / (veins - .5)
        reach = wide * (.5 + .32 * min(i, veins - i))
        reach = min(reach, wide * .78)
        strokes += [line(50, y + 4, 50 - reach, y + 4 - rise),
                    line(50, y + 4, 50 + reach, y + 4 - rise)]
    return turn(strokes, v.pick(-35, 0, 0, 35) + v(-8, 8))


def mushroom(v: Vary) -> list[Stroke]:
    wide, high, foot = v(34, 42), v(34, 44), v(9, 14)
    rim = 52
    strokes = [curve(50 - foot * .8, rim, 50 - foot * .9, 72, 50 - foot * 1.25, 92, 50, 96,
                     50 + foot * 1.25, 92, 50 + foot * .9, 72, 50 + foot * .8, rim)]
    cap = closed(join(arc(50, rim, wide, high, 180, 360),
                      curve(50 + wide, rim, 50 + wide * .5, rim + 6, 50, rim + 7, 50 - wide * .5,
                            rim + 6, 50 - wide, rim)))
    strokes.append(cover(cap))
    if v.maybe(.85):
        strokes += [ring(50 + v(-6, 6), rim - high * .62, v(5, 7), v(4, 6)),
                    ring(50 - wide * .55, rim - high * .3, v(4, 6)),
                    ring(50 + wide * .55, rim - high * .3, v(4, 6))]
        if v.maybe():
            strokes.append(ring(50 + v(-4, 4), rim - high * .2, 4))
    if v.maybe(.35):
        strokes.append(curve(50 - foot, 66, 50, 71, 50 + foot, 66))
    if v.maybe(.35):
        strokes += [line(22, 97, 26, 88, 29, 97), line(72, 97, 76, 87, 80, 97)]
    return strokes


def cactus(v: Vary) -> list[Stroke]:
    half, top, ground = v(9, 12), v(4, 12), v(84, 94)
    trunk = line(50 - half, ground, 50 - half, top + half)
    trunk = join(trunk, arc(50, top + half, half, half, 180, 360), line(50 + half, ground))
    strokes = []

    def arm(side: float, y: float, out: float, up: float) -> Stroke:
        w = half * .62
        x0, x1 = 50 + side * half * .8, 50 + side * (half + out)
        return line(x0, y + w, x1, y + w, x1 + side * w, y, x1 + side * w, y - up, x1, y - up - w,
                    x1 - side * w, y - up, x1 - side * w, y - w, x0, y - w)

    strokes.append(arm(-1, v(50, 64), v(12, 17), v(10, 20)))
    if v.maybe(.85):
        strokes.append(arm(1, v(40, 56), v(12, 17), v(10, 20)))
    strokes.append(cover(trunk))
    if v.maybe(.7):
        x = 50 - half * .45
        strokes += [line(x, y, x + half * .8, y - 2) for y in (26, 38, 50, 62, 74)]
    else:
        strokes += [line(50 - half * .35, 24, 50 - half * .35, 78),
                    line(50 + half * .35, 20, 50 + half * .35, 78)]
    if v.maybe(.45):
        strokes += [cover(poly(30, ground - 8, 70, ground - 8, 64, ground + 14, 36, ground + 14))]
    else:
        strokes.append(curve(14, ground + 1, 34, ground - 1, 60, ground + 2, 88, ground))
    return strokes


def sun(v: Vary) -> list[Stroke]:
    r, count, start = v(19, 24), v.pick(8, 9, 10, 12), v(0, 40)
    strokes = [ring(50, 50, r)]
    if v.maybe(.7):
        strokes += rays(50, 50, r + v(4, 7), v(40, 46), count, start)
    else:
        point = poly(50 - r * .3, 50 - r - 4, 50, 50 - r - v(16, 22), 50 + r * .3, 50 - r - 4)
        for i in range(min(count, 9)):
            strokes += turn([point], start + 360 * i / min(count, 9))
    if v.maybe(.5):
        strokes += [dot(43, 45, 2), dot(57, 45, 2), arc(50, 49, 10, 9, 20, 160)]
    return strokes


def moon(v: Vary) -> list[Stroke]:
    bite = v(12, 20)
    outer, inner = arc(56, 50, 42, 44, 62, 298), arc(56 + bite, 50, 42 - bite * .45, 40, 285, 75)
    strokes = [closed(join(outer, inner))]
    if v.maybe(.3):
        strokes += [arc(31, 44, 4, 3, 0, 180), curve(26, 62, 31, 67, 37, 66)]
    elif v.maybe(.4):
        strokes += [ring(v(24, 30), v(36, 44), 3.5), ring(v(28, 34), v(58, 66), 4.5)]
    if v.maybe(.4):
        x, y = v(70, 82), v(30, 60)
        strokes += rays(x, y, 0, 6, 4, 0) + rays(x, y, 0, 4, 4, 45)
    return turn(strokes, v(-12, 12))


def star(v: Vary) -> list[Stroke]:
    if v.maybe(.3):
        points = [ray.points[1] for ray in rays(50, 50, 0, 46, 5, -90)]
        strokes = [closed(join(*(Stroke(points[i][None]) for i in (0, 2, 4, 1, 3))))]
    else:
        inner = v(17, 22)
        outer_tips, inner_tips = rays(50, 50, 0, 46, 5, -90), rays(50, 50, 0, inner, 5, -54)
        tips = [Stroke(r.points[1:]) for pair in zip(outer_tips, inner_tips) for r in pair]
        strokes = [closed(join(*tips))]
        if v.maybe(.35):
            strokes += [dot(44, 47, 1.8), dot(56, 47, 1.8), arc(50, 51, 7, 6, 20, 160)]
        elif v.maybe(.3):
            strokes += rays(50, 50, 0, 40, 5, -90)
    if v.maybe(.25):
        strokes += [line(12, 14, 18, 20), line(18, 14, 12, 20), line(84, 84, 90, 90),
                    line(90, 84, 84, 90)]
    return strokes


def cloud(v: Vary) -> list[Stroke]:
    lift = v(-3, 3)
    strokes = [closed(join(arc(26, 46, 15, 13, 90, 260), arc(42, 30 + lift, 17, 17, 185, 315),
                           arc(65, 36, 14, 14, 215, 340), arc(78, 48, 12, 11, 280, 450)))]
    kind = v.pick('drops', 'lines', 'lines', 'bolt')
    if kind == 'lines':
        slope, count = v(-10, 2), v.pick(4, 5)
        for i in range(count):
            x = 28 + 50 * i / (count - 1)
            strokes += [line(x, 67, x + slope * .5, 77)]
            strokes += [line(x + slope * .7 - 2, 82, x + slope - 2, 92)] if i % 2 == 0 else []
    elif kind == 'drops':
        for x, y in ((30, 68), (50, 78), (70, 68), (40, 92)):
            strokes.append(closed(curve(x, y - 5, x - 3.5, y + 3, x, y + 6, x + 3.5, y + 3, x,
                                        y - 5)))
    else:
        strokes += [poly(52, 62, 42, 80, 50, 80, 44, 97, 62, 75, 53, 75, 60, 62),
                    line(26, 67, 22, 80), line(78, 67, 74, 80)]
    return strokes


def mountain(v: Vary) -> list[Stroke]:
    x, y, x2, y2 = v(34, 44), v(14, 22), v(66, 76), v(34, 44)

    def snow(cx: float, cy: float, left: float, right: float, deep: float) -> Stroke:
        a, b = cx + (left - cx) * deep, cx + (right - cx) * deep
        base = cy + (88 - cy) * deep
        return line(a, base, a + (b - a) * .25, base - 5, a + (b - a) * .42, base + 4,
                    a + (b - a) * .62, base - 5, a + (b - a) * .8, base + 3, b, base)

    strokes = [line(44, 88, x2, y2, 98, 88), snow(x2, y2, 44, 98, .32),
               cover(line(2, 88, x, y, 76, 88)), snow(x, y, 2, 76, v(.28, .36))]
    if v.maybe(.35):
        strokes.insert(0, line(-8, 88, 12, v(50, 58), 40, 88))
    strokes.append(line(0, 88, 100, 88))
    if v.maybe(.45):
        strokes += [curve(60, 18, 64, 14, 67, 18), curve(67, 18, 70, 14, 74, 18)]
        strokes += [curve(78, 24, 81, 21, 84, 24), curve(84, 24, 87, 21, 90, 24)]
    return strokes


def apple(v: Vary) -> list[Stroke]:
    wide, dip, low = v(33, 38), v(30, 36), v(88, 94)
    strokes = [blob(50, dip, 50 - wide * .55, 26, 50 - wide, 50, 50 - wide * .7, 78,
                    50 - wide * .3, low, 50, low - 5, 50 + wide * .3, low, 50 + wide * .7, 78,
                    50 + wide, 50, 50 + wide * .55, 26),
               curve(50, dip, 50, 22, v(50, 57), v(9, 13))]
    if v.maybe(.8):
        strokes.append(closed(curve(51, 22, 60, 10, 76, v(8, 14), 68, 22, 51, 22)))
    if v.maybe(.4):
        strokes.append(arc(46, 58, 22, 22, 170, 225))
    if v.maybe(.25):
        strokes.append(curve(44, dip + 1, 50, dip + 5, 56, dip + 1))
    return strokes


def _top_hat(y: float) -> list[Stroke]:
    return [cover(box(38, y - 19, 62, y)), line(28, y, 72, y), line(38, y - 6, 62, y - 6)]


def snowman(v: Vary) -> list[Stroke]:
    three = v.maybe(.4)
    strokes = []
    if three:
        strokes = [ring(50, 82, 20, 17), cover(ring(50, 54, 15, 14)), cover(ring(50, 32, 11))]
        head, r, chest = 32, 11, 54
    else:
        strokes = [ring(50, 74, 26, 24), cover(ring(50, 36, 16))]
        head, r, chest = 36, 16, 68
    if v.maybe(.85):
        strokes += _top_hat(head - r * .72)
    strokes += [dot(50 - r * .38, head - 1, 1.9), dot(50 + r * .38, head - 1, 1.9)]
    strokes.append(closed(line(50, head + 2, 50 + v(12, 18), head + 5, 50, head + 6)))
    strokes += [dot(50, chest + dy, 1.9) for dy in ((-5, 4) if three else (-6, 4, 14))]
    if v.maybe(.8):
        arm_y = chest - 2
        out = 13 if three else 21
        strokes += [line(50 - out, arm_y, 14, arm_y - 14), line(20, arm_y - 11, 13, arm_y - 7),
                    line(50 + out, arm_y, 86, arm_y - 14), line(80, arm_y - 11, 87, arm_y - 7)]
    if v.maybe(.4):
        y = head + r * .9
        strokes += [cover(poly(50 - r * .8, y - 2, 50 + r * .8, y - 2, 50 + r * .8, y + 4,
                               50 - r * .8, y + 4)),
                    line(50 + r * .4, y + 4, 50 + r * .6, y + 15)]
    return strokes


def heart(v: Vary) -> list[Stroke]:
    wide, dip = v(38, 44), v(26, 34)

    def outline(scale: float) -> Stroke:
        shape = join(curve(50, dip, 50 - wide * .3, 13, 50 - wide * .75, 13, 50 - wide, 34,
                           50 - wide * .72, 60, 50, 92),
                     curve(50, 92, 50 + wide * .72, 60, 50 + wide, 34, 50 + wide * .75, 13,
                           50 + wide * .3, 13, 50, dip))
        return Stroke((shape.points - (50, 48)) * scale + (50, 48))

    if v.maybe(.3):
        return [line(4, 76, 96, 22), line(86, 20, 97, 21, 93, 32), line(4, 76, 2, 66),
                line(10, 72, 8, 62), line(4, 76, 12, 82), line(10, 72, 18, 78),
                cover(outline(.78))]
    strokes = [outline(1)]
    if v.maybe(.3):
        strokes.append(outline(v(.66, .76)))
    elif v.maybe(.4):
        strokes.append(arc(34, 34, 11, 11, 170, 250))
    return strokes


FIGURES = {
    'tree': tree, 'flower': flower, 'leaf': leaf, 'mushroom': mushroom, 'cactus': cactus,
    'sun': sun, 'moon': moon, 'star': star, 'cloud': cloud, 'mountain': mountain,
    'apple': apple, 'snowman': snowman, 'heart': heart,
}
