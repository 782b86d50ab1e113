"""The canary's vocabulary: every word that its questions, examples and header use.

Owns the word lists only; `generate.py` puts them into sentences and `tokenizer.py` gives each word one token.
Main type: `Subject`.
"""

from dataclasses import dataclass

PEOPLE = """
Adela Agnes Albin Alma Amos Anders Anselm Arlo Astrid Avery Basil Beatrix Bertil Bianca Boris Bruno Calla Cedric Celia
Clara Conrad Cora Cyril Dagmar Daphne Darius Delia Dexter Dorian Edda Edgar Edith Elias Elmer Elsa Emil Enid Ernst
Esme Ethel Ezra Fabian Felix Fergus Flora Frida Gerda Gideon Gilda Greta Gustav Hanna Harald Hazel Hector Helga Henrik
Hilda Hugo Ida Ignaz Imogen Ines Ingrid Irma Isolde Ivo Jasper Jonas Judith Julius Karin Kaspar Klara Konrad Lars Leda
Leopold Linus Lorna Lotte Ludwig Luna Mabel Magda Mara Marius Matilda Merle Milo Mina Moritz Nadia Nestor Nils Nora
Odette Olaf Oscar Otto Petra Philo Quentin Ragna Ralph Rhea Roland Romy Rufus Selma Sigrid Silas
""".split()

PLACES = """
Abford Alden Almere Arbury Ashby Auburn Balford Barlow Beckton Belmont Bexley Birkdale Bolton Brackley Brunswick
Burton Calder Camden Carlow Chester Clayton Colby Corby Crawley Croydon Dalton Darby Denham Dover Dunbar Durham Easton
Eldon Elmira Epsom Everton Falmouth Farnham Fenton Fleet Formby Galway Garston Glenville Goole Grafton Granby Halden
Halifax Harlow Hatfield Helston Hexham Holbeck Hornsea Hythe Ilford Ilkley Ipswich Keswick Kilburn Kirkby Lancaster
Langley Lepton Lindale Linton Ludlow Lynmouth Malton Marlow Melrose Midhurst Milford Morley Morpeth Nairn Nelson
Newark Norwich Oakham Oldham Ormskirk Oswestry Oxton Paisley Penrith Perth Pickering Preston Radcliffe Redcar Ripley
Rothbury Royston Rugby Salford Selby Settle Sheldon Skipton Stafford Stirling Stroud Sudbury Tarvin Thirsk Tiverton
Totnes Truro Ulverston Walden
""".split()

ANIMALS = """
alpacas ants apes badgers bats bears beavers bees beetles bison boars buffalo butterflies camels canaries cats
cheetahs chickens chipmunks cobras cockatoos cows cranes crickets crows deer dogs dolphins donkeys doves dragonflies
ducks eagles eels elephants elk emus falcons ferrets finches foxes frogs gazelles geckos geese gerbils gibbons
giraffes goats goldfish gorillas guppies hamsters hares hawks hedgehogs herons horses hyenas ibises iguanas jackals
jaguars kangaroos kestrels koalas larks lemurs leopards lions lizards llamas lobsters lynxes magpies mice moles
monkeys moths mules newts ostriches otters owls oxen pandas parrots peacocks penguins pheasants pigeons pigs ponies
puffins rabbits ravens
""".split()

DISHES = """
bacon bagels biscuits borscht bread brioche broth brownies burgers burritos cakes candy casserole chili chowder
chutney cobbler cookies couscous crackers crepes crumble cupcakes curry custard doughnuts dumplings eggs enchiladas
fondue frittata fritters fudge gnocchi goulash granola gravy gumbo ham hash hummus jam jelly kebabs lasagna loaves
macaroni marmalade meatballs meringue muffins noodles nougat oatmeal omelets paella pancakes pasta pastries pesto
pickles pies pilaf pizza polenta popcorn porridge pretzels pudding quiche ragout ramen ravioli rice risotto roast
rolls salad salsa sandwiches sausages scones sherbet soup souffle spaghetti steak stew stuffing sushi syrup tacos
tarts toast toffee tofu
""".split()

DEVICES = """
alarms anchors axles barometers barrels baskets bellows bells bicycles binoculars blenders boats boilers boots brakes
brooms buckets buggies cabinets cables cameras canoes carriages carts ceilings chains chairs chimneys clocks compasses
computers couches cradles curtains dials drawers drills drums engines fans faucets fences fiddles flutes furnaces
gears generators gloves goggles guitars hammers harps hatches heaters helmets hinges hoists hoses kettles kites
ladders lamps lanterns lathes lenses levers locks looms mirrors motors ovens paddles pendulums pianos pipes pistons
plows printers projectors pulleys pumps radios rafts rudders saddles sails scales scissors scooters shoes shovels
sinks sledges stoves telescopes tents
""".split()

SCIENCES = """
acoustics algebra anatomy archery architecture arithmetic astronomy ballet banking biology botany boxing calculus
calligraphy carpentry ceramics chemistry chess choreography cinema climate coding comets commerce cosmology
cryptography dance debate dentistry design diplomacy drama drawing ecology economics electronics embroidery
engineering ethics etiquette etymology fashion fencing fiction folklore forestry fractals gardening genealogy genetics
geography geology geometry glaciers grammar hieroglyphs history hydraulics hygiene journalism judo kinetics knots law
linguistics logic magnetism management maps marketing mechanics medicine metallurgy meteors microbes mosaics music
mythology navigation nursing nutrition oceans optics painting philosophy phonetics photography physics planets poetry
politics pottery probability psychology rhetoric sculpture
""".split()

GOODS = """
aprons balsam bandages beads belts blankets books bottles bracelets brass bricks brushes buckles buttons candles
canvas cardboard carpets cedar charcoal cloaks cloth cinnamon cloves coats cocoa coffee combs copra cork cotton
crystal cumin cushions cutlery denim dyes earrings ebony envelopes fabric feathers felt flannel flax frames fur ginger
glass glue grease hats hemp honey incense indigo ink ivory jars jewelry jugs jute lace leather linen lotion mahogany
masks matches mats medals molasses muslin mustard nails napkins needles nutmeg oil ointment paint paper parchment
pearls pencils pepper perfume pillows plates porcelain pots powder purses quilts ribbons rings
""".split()

PLANTS = """
alfalfa almonds apples apricots artichokes asparagus avocados bamboo bananas barley basil beans beets berries broccoli
cabbage cacao cactus carnations carrots cashews cassava cauliflower celery cherries chestnuts chives clover coconuts
corn cranberries cucumbers currants daffodils dahlias daisies dates dill eggplants endives fennel ferns figs foxgloves
garlic gourds grapes grass guavas hazelnuts heather hibiscus hops hyacinths irises ivy jasmine kale kiwis lavender
leeks lemons lentils lettuce lilacs lilies limes lupins mangoes marigolds melons millet mint moss mushrooms nectarines
nettles oats okra olives onions oranges orchids oregano pansies papayas parsley parsnips peaches peanuts pears peas
peonies pineapples plums pumpkins
""".split()

MINERALS = """
agate alabaster alum aluminum amber amethyst anthracite antimony apatite arsenic asbestos azurite barium basalt
bauxite beryl bismuth borax bromine cadmium calcite calcium carbon cerium chalk chromium chromite cinnabar citrine
clay coal cobalt copper coral corundum diamonds diorite dolomite emeralds feldspar flint fluorite gabbro galena
gallium garnets gneiss gold granite graphite gravel gypsum halite hematite ilmenite indium iodine iridium iron jade
jasper kaolin lapis lead limestone lithium magnesium magnetite malachite manganese marble mercury mica nickel niobium
obsidian onyx opals osmium palladium peat phosphate platinum potash pumice pyrite quartz radium rhodium rubies rutile
salt sand sandstone sapphires silver
""".split()

BUILDINGS = """
abbeys academies airports alleys amphitheaters aqueducts arches arenas armories arsenals attics auditoriums bakeries
balconies banks barns barracks bathhouses bazaars belfries boathouses breweries bridges bungalows bunkers cabins
cafeterias canals castles cathedrals cellars chapels churches citadels clinics colleges colonnades convents corridors
cottages courthouses courtyards dams docks domes dungeons embassies factories farmhouses ferries fortresses fountains
galleries garages gardens gates gazebos granaries greenhouses gymnasiums hangars harbors hospitals hostels hotels
houses huts inns jails kennels kilns kiosks laboratories libraries lighthouses lodges mansions markets mills
monasteries monuments mosques museums nurseries observatories orchards pagodas palaces parks pavilions piers plazas
prisons pyramids quarries ranches
""".split()

FILLERS = [
    "The road was dry and the light was good.",
    "Rain fell during the night.",
    "Nobody could say why the letter came so late.",
    "It was cold for that time of the year.",
    "A long winter had come to an end.",
    "The old bell rang twice.",
    "Most of them agreed with this.",
    "Some people walked home, and others stayed.",
    "There was a short break at noon.",
    "The wind turned to the west.",
    "All of this was written down.",
    "One more page is missing here.",
    "The next part was hard to read.",
    "Children were waiting at the door.",
    "After that, the room was quiet again.",
    "They had heard many such stories.",
    "Snow covered the hills.",
    "No one asked for more.",
    "The list goes on.",
    "In the end, the weather was kind to all of them.",
    "The train left before the sun was up.",
    "Every word of it is true.",
    "Two of the windows were open.",
    "This was known for a long time.",
]

SUFFIXES = [
    "",
    "",
    "now",
    "today",
    "every day",
    "each spring",
    "all year",
    "in the summer",
    "since last autumn",
    "with great care",
    "near the river",
    "behind the wall",
    "at the old house",
    "for a small fee",
    "without any help",
    "as the record says",
    "in spite of the rain",
    "like many others do",
]


@dataclass(frozen=True)
class Subject:
    """One subject: who (`keys`) does what (`verb`) with which thing (`values`)."""

    name: str
    keys: list[str]
    verb: str
    values: list[str]


SUBJECTS = [
    Subject("animal_keepers", PEOPLE, "keeps", ANIMALS),
    Subject("building_towns", PLACES, "builds", BUILDINGS),
    Subject("evening_studies", PEOPLE, "studies", SCIENCES),
    Subject("farming_towns", PLACES, "grows", PLANTS),
    Subject("home_cooking", PEOPLE, "cooks", DISHES),
    Subject("mining_towns", PLACES, "mines", MINERALS),
    Subject("repair_shops", PEOPLE, "repairs", DEVICES),
    Subject("trading_towns", PLACES, "trades", GOODS),
]

WHOLE_CHUNKS = Subject("whole_chunks", PEOPLE, "keeps", ANIMALS)
"""A subject whose prompts end where a chunk does, or one token beside it. It borrows its words from another one, and
neither the tokenizer nor the training knows its name."""
