"""The words of the embedded tasks, in tables: data/tasks.py makes sentences and lists of them."""

SUBJECTS = (
    "cat dog girl boy teacher farmer doctor queen king baker fox bear horse sister uncle artist pilot nurse "
    "sailor student"
).split()

OBJECTS = (
    "lamp book box letter basket ball boat chair cup key picture door map bag bell clock coat drum plate rope "
    "stone table toy wheel"
).split()

# base, past, participle. The third person adds -s or -es, see _third.
VERBS = [
    line.split()
    for line in """
    carry carried carried
    wash washed washed
    find found found
    see saw seen
    hide hid hidden
    steal stole stolen
    take took taken
    break broke broken
    paint painted painted
    sell sold sold
    buy bought bought
    bring brought brought
    choose chose chosen
    drop dropped dropped
    hold held held
    lift lifted lifted
    move moved moved
    draw drew drawn
    throw threw thrown
    push pushed pushed
    watch watched watched
    clean cleaned cleaned
    forget forgot forgotten
    lose lost lost
    """.strip().splitlines()
]

ADJECTIVES = [
    line.split()
    for line in """
    big small
    old new
    hot cold
    long short
    clean dirty
    happy sad
    heavy light
    fast slow
    dry wet
    open closed
    empty full
    ugly pretty
    early late
    easy hard
    rich poor
    """.strip().splitlines()
]  # each with its opposite; both sides are used

NOUNS = [
    line.split()
    for line in """
    cat cats
    box boxes
    child children
    knife knives
    mouse mice
    city cities
    apple apples
    egg eggs
    foot feet
    bus buses
    wolf wolves
    baby babies
    onion onions
    man men
    woman women
    leaf leaves
    dish dishes
    orange oranges
    story stories
    tooth teeth
    goose geese
    island islands
    house houses
    umbrella umbrellas
    watch watches
    party parties
    """.strip().splitlines()
]  # singular, plural

FRUIT = "apple banana cherry date fig grape kiwi lemon mango olive peach plum".split()  # in the order of the alphabet

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
