"""The word lists that the synthetic conversations are made of."""

from __future__ import annotations

# First names that recall and word problems use; the tokenizer gives each one token with its leading space.
NAMES = """Anna Ben Clara David Emma Felix Greta Hugo Ida Jack Karen Leo Mia Noah Olga Paul Rosa Simon Tina Ursula
Victor Wendy Zoe Adam Bella Carl Diana Erik Fiona George Helen Igor Julia Kevin Laura Mark Nina Oscar Petra Robert
Sara Thomas Vera Walter Alice Bruno Cora Elena Frank Gloria Henry Jonas Kate Lukas Maria Nora Otto Paula Ralf Tom
Albert Chris Doris Edgar Frida Hanna Ivan Jana Linda Max Nadia Oliver Peter Rita Sven Theo Alex Bianca Dora Emil
Flora Gina Harry Iris James Kira Lisa Martin Nick Olivia Philip Ruth Stefan Tara Viola William Daisy Ella Fred Grace
John Kurt Lena Milo Naomi Pia Susan Tobias Arthur Bob Cindy Daniel Eva Gabriel Kim Monica""".split()

# Short nouns that are secret words; one token each with the leading space.
SECRETS = """maple river stone apple tiger piano candle anchor basket bridge button camel carpet castle cherry
circle clock cloud comet copper coral cotton crown desert diamond drum eagle earth engine feather finger flame
forest fox ginger glass glove gold grape guitar hammer harbor hat helmet honey horse ice iron island ivory jacket
jungle kettle key kite ladder lake lamp lantern leaf lemon letter lily lion lizard magnet mango marble meadow melon
metal mirror monkey moon mountain mouse museum mushroom nail needle nest night nut oak ocean olive onion orange owl
paint palace palm panda paper parrot peach pearl pebble pencil pepper pigeon pillow pine pirate planet plum pocket
pond poppy potato prince pumpkin puzzle queen rabbit radio rain ribbon rice ring robot rocket rope rose ruby sail
salmon salt sand scarf seed shadow shark sheep shell shield ship silk silver snake snow spider spoon spring star
statue steel storm sugar sun swan sword tea temple thunder ticket tomato torch tower tractor treasure tree tulip
tunnel turtle valley village violet wagon wave whale wheat wheel whistle window winter wolf wood zebra arrow bacon
banana barrel beach bell berry bottle bread bucket""".split()

CITIES = """Paris London Berlin Madrid Rome Vienna Prague Oslo Lisbon Dublin Athens Warsaw Budapest Brussels Helsinki
Stockholm Copenhagen Amsterdam Zurich Geneva Munich Hamburg Cologne Milan Naples Venice Florence Turin Barcelona
Seville Valencia Porto Lyon Nice Lille Bordeaux Toulouse Glasgow Edinburgh Bristol Leeds Oxford Cambridge Moscow Kyiv
Riga Tallinn Vilnius Zagreb Belgrade Sofia Bucharest Istanbul Ankara Cairo Tunis Lagos Nairobi Accra Dakar Tokyo Osaka
Kyoto Seoul Beijing Shanghai Delhi Mumbai Bangkok Hanoi Manila Jakarta Singapore Sydney Melbourne Perth Auckland
Wellington Toronto Montreal Vancouver Ottawa Boston Chicago Houston Dallas Denver Seattle Miami Phoenix Detroit
Atlanta Lima Quito Bogota Santiago Havana Salzburg Graz Basel Bern Krakow Gdansk Bergen Malmo Aarhus Tampere Rotterdam
Utrecht Antwerp Ghent Bremen Leipzig Dresden Stuttgart Frankfurt Hanover Genoa Palermo Bologna Verona Granada Malaga
Bilbao Cork Belfast Cardiff Liverpool Manchester York Brighton Nantes Marseille Calgary Orlando Memphis Austin
Portland""".split()

# Receivers of messages: apart from NAMES, because their tokens keep the space apart and are copied as they stand.
RECEIVERS = """Aaron Barbara Betty Brian Carol Cynthia Deborah Donald Dorothy Edward Elias Esther Gerald Gordon Harold
Ingrid Jasper Jeremy Judith Kenneth Leonard Margaret Marvin Nathan Norman Pamela Patrick Raymond Rebecca Ronald
Samuel Sharon Sheila Sylvia Terence Timothy Tracy Vanessa Veronica Wallace Mum Dad Grandma Grandpa""".split()

TITLE_FIRST = """Blue Silent Golden Broken Distant Happy Lonely Midnight Purple Secret Wild Frozen""".split()
TITLE_SECOND = """River Mountain Dreams Hearts Train Garden Ocean Summer Lights Roads Rain Dance Sky Waltz""".split()

COMPANIES = """Apple Google Amazon Siemens Toyota Sony Nokia Intel Shell Bayer Nestle Philips Samsung Boeing Ferrari
Adidas Volvo Honda Nike Tesla""".split()
SYMBOLS = """AAPL MSFT TSLA NVDA INTC SONY NOK BMW SAP IBM ORCL NFLX AMZN GOOG META DIS NKE PEP""".split()
CURRENCIES = "EUR USD GBP CHF JPY SEK NOK PLN CAD AUD".split()
LANGUAGES = "French German Spanish Italian Dutch Polish Greek Swedish Turkish Japanese Latin Danish".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
ROOMS = "kitchen bathroom bedroom hall cellar garage office attic".split()
EVENTS = "dinner lunch football tennis yoga meeting concert swimming shopping breakfast".split()
PHRASES = """good morning|good night|thank you|see you soon|where is the station|I love you|my name is Max|how are you
the house is big|a glass of water|happy birthday|the train is late|I am hungry|what time is it|the book is old
we like cheese|open the door|the sky is blue|I need a doctor|nice to meet you|the soup is hot|have a good day
my cat is black|one ticket please|the shop is closed|I do not know""".replace("\n", "|").split("|")
QUERY_FIRST = "cheap old new best small modern famous simple".split()
QUERY_SECOND = """bicycles recipes castles films novels gardens boats shoes phones hotels trains paintings cameras jokes
songs games""".split()
MESSAGE_VERBS = ["am", "will be", "was"]
MESSAGE_ENDS = """late|at home|at work|in the garden|on the train|at the station|in town|very tired|busy today
ready|at the market|in the office|on the bus|at school""".replace("\n", "|").split("|")

# Things that people ask about and this model knows nothing of.
TOPICS = """bicycle engine poem novel castle gravity quantum physics chemistry biology history Napoleon Shakespeare
Mozart Beethoven Picasso Einstein Newton python javascript database website program algorithm compiler function
economy inflation taxes insurance mortgage bank money stock market politics election president government law contract
court lawyer doctor medicine headache fever vaccine virus bacteria heart brain liver muscle bone skin diet vitamin
protein recipe cake pizza pasta soup salad sauce bread cheese wine beer coffee tea chocolate potato tomato garlic
garden flower rose tulip tree forest desert mountain volcano earthquake hurricane tornado climate weather rain snow
ocean sea river lake island beach whale shark dolphin elephant giraffe lion tiger wolf bear horse cow sheep chicken
eagle owl parrot snake spider bee butterfly ant dinosaur fossil planet moon star sun galaxy comet rocket satellite
telescope microscope laser magnet battery electricity computer keyboard printer phone camera television radio
microphone guitar piano violin drum orchestra opera ballet theatre film movie actor director museum painting sculpture
architecture bridge tower church temple pyramid pharaoh emperor king queen knight pirate dragon wizard ghost vampire
robot spaceship alien time machine universe atom molecule oxygen hydrogen carbon iron gold silver copper diamond
crystal plastic glass paper wood steel concrete brick roof window door kitchen furniture carpet lamp mirror bed sofa
chair car truck bus train tram subway aeroplane airport helicopter ship boat submarine harbour motorway traffic
football tennis basketball hockey golf swimming skiing running marathon yoga chess poker bridge lottery puzzle riddle
school university exam teacher student homework essay grammar dictionary library newspaper magazine journalist
internet email password hacker security privacy camera drone war peace army soldier weapon castle treaty empire
revolution colony slavery democracy religion bible prayer philosophy logic ethics happiness love marriage wedding
divorce family child baby birthday Christmas Easter holiday travel hotel passport visa luggage tent camping hiking map
compass north south Africa Asia Europe America Australia Antarctica Brazil Argentina Peru Chile Kenya Nigeria Ghana
Iceland Ireland Scotland Wales Sicily Siberia Alaska Texas California Hawaii job salary interview career boss office
factory farm farmer tractor wheat rice corn sugar salt oil gas coal nuclear solar wind energy""".split()
TOPICS = list(dict.fromkeys(TOPICS))
