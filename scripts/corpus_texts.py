"""The words that scripts/make_corpus.py puts together: made up for it, under the licence of this repository (MIT)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """Wordings in one language. Fields in braces are filled in: {n} and {m} numbers, {item}, {place}, {name}, {day}.

    asks and answers go together, and so do the steps of one sum: {a}, {b}, {c} = a * b, {d} = c + n. sentences stand for
    themselves, as text that goes on.
    """

    code: str
    items: list[str]
    places: list[str]
    names: list[str]
    days: list[str]
    talks: list[tuple[str, str, str]]  # question, reasoning, answer
    sum_asked: str
    sum_thought: str
    sum_answer: str
    sentences: list[str]
    space: str = " "  # between sentences


def _words(text: str) -> list[str]:
    return text.split("|")


LANGUAGES = [
    Language(
        "en", _words("a loaf of bread|two kilos of apples|a bicycle pump|a desk lamp|three notebooks|a raincoat|a kettle|a map"),
        _words("the harbour|the old library|the market hall|the railway station|the museum|the town hall|the botanical garden"),
        _words("Clara|Tom|Amira|Jonas|Mei|Ravi|Olga|Peter"), _words("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"),
        [("Where can I buy {item} near {place}?", "They want a shop near {place}. I cannot see a map, so I describe how to find one.",
          "Close to {place} there are usually small shops that sell {item}. Ask at the information desk, or search a map for shops "
          "within {n} minutes on foot; most of them close at {m} o'clock."),
         ("Write a short message to {name}: I will be {n} minutes late at {place} on {day}.",
          "A polite message with the delay, the place and the day.",
          "Hi {name}, sorry, I will be about {n} minutes late at {place} on {day}. Please start without me if you have to. See you!"),
         ("Can you plan a day around {place}?", "A plan with times. Morning, noon, evening; leave room for rest.",
          "1. 09:{n} – breakfast near {place}.\n2. 11:00 – walk along the river for about {m} minutes.\n3. 13:00 – lunch, and a "
          "break in the shade.\n4. 15:00 – buy {item}.\n5. 18:00 – meet {name} and take the train home."),
         ("What should I think about before I repair {item} myself?", "Safety first, then tools, then when to stop.",
          "First make sure that nothing is under power or pressure. Then lay out the tools, take pictures of each step, and keep the "
          "parts in order. If after {n} minutes you do not see what is wrong, ask somebody who has done it before.")],
        "{name} buys {a} boxes with {b} pieces each and finds {n} more. How many pieces are there?",
        "{a} boxes times {b} pieces are {c}. With {n} more, {c} + {n} = {d}.", "There are {d} pieces: {a} × {b} + {n} = {d}.",
        _words("The train to {place} leaves at {n} past the hour.|Nobody had expected {name} to come back before {day}.|Of the {m} "
               "samples, {n} were lost on the way.|It rained for {n} days, and the path to {place} was under water.|Prices rose by {n} "
               "percent while wages stayed where they were.|The committee met again on {day} and postponed its decision.|In the "
               "evening {name} repaired the pump, which had stood still for {n} weeks.|A second measurement gave {m} instead of {n}.|What "
               "is cheap to build is not always cheap to run.|The older maps show a road there that never existed."),
    ),
    Language(
        "de", _words("ein Brot|zwei Kilo Äpfel|eine Luftpumpe|eine Schreibtischlampe|drei Hefte|einen Regenmantel|einen Wasserkocher"),
        _words("dem Hafen|der alten Bibliothek|der Markthalle|dem Bahnhof|dem Museum|dem Rathaus|dem botanischen Garten"),
        _words("Klara|Thomas|Amira|Jonas|Mei|Ravi|Olga|Peter"),
        _words("Montag|Dienstag|Mittwoch|Donnerstag|Freitag|Samstag|Sonntag"),
        [("Wo bekomme ich {item} in der Nähe von {place}?", "Gesucht ist ein Laden bei {place}. Ich kenne die Gegend nicht genau und sage, "
          "wie man einen findet.", "In der Nähe von {place} gibt es meist kleine Läden, in denen man {item} bekommt. Frag an der Auskunft, oder "
          "such auf der Karte im Umkreis von {n} Minuten zu Fuß; die meisten schließen um {m} Uhr."),
         ("Schreib {name} bitte, dass ich am {day} {n} Minuten später bei {place} bin.", "Eine kurze, höfliche Nachricht.",
          "Hallo {name}, ich komme am {day} leider etwa {n} Minuten später zu {place}. Fangt gern schon ohne mich an. Bis gleich!"),
         ("Erkläre mir, warum der Himmel blau ist.", "Streuung an den Molekülen der Luft, kurze Wellen stärker als lange.",
          "Sonnenlicht enthält alle Farben. Die Moleküle der Luft streuen kurzwelliges, blaues Licht viel stärker als rotes; deshalb kommt aus "
          "allen Richtungen vor allem blaues Licht zu uns. Abends ist der Weg durch die Luft länger, und übrig bleibt das Rot.")],
        "{name} kauft {a} Kisten mit je {b} Flaschen und findet noch {n}. Wie viele Flaschen sind das?",
        "{a} mal {b} sind {c}, und {n} dazu ergibt {d}.", "Es sind {d} Flaschen: {a} · {b} + {n} = {d}.",
        _words("Der Zug nach {place} fährt um {n} nach.|Am {day} tagte der Ausschuss ohne Ergebnis.|Von {m} Proben gingen {n} unterwegs "
               "verloren.|Niemand hatte erwartet, dass {name} vor {day} zurückkommt.|Die Preise stiegen um {n} Prozent, die Löhne nicht.|Was "
               "günstig zu bauen ist, ist nicht immer günstig zu betreiben.|Es regnete {n} Tage lang, und der Weg zu {place} stand unter Wasser."),
    ),
    Language(
        "fr", _words("du pain|deux kilos de pommes|une pompe à vélo|une lampe de bureau|trois cahiers|un imperméable|une bouilloire"),
        _words("le port|la vieille bibliothèque|le marché couvert|la gare|le musée|la mairie|le jardin botanique"),
        _words("Claire|Thomas|Amira|Jonas|Mei|Ravi|Olga|Pierre"), _words("lundi|mardi|mercredi|jeudi|vendredi|samedi|dimanche"),
        [("Où puis-je acheter {item} près d'ici, vers {place} ?", "La personne cherche un magasin vers {place} ; je n'ai pas de carte.",
          "Vers {place}, il y a en général de petites boutiques qui vendent {item}. Demandez au point d'information ou cherchez sur une carte à "
          "{n} minutes à pied ; la plupart ferment à {m} heures."),
         ("Écris à {name} que j'aurai {n} minutes de retard {day}.", "Un message court et poli.",
          "Bonjour {name}, j'aurai environ {n} minutes de retard {day}. Commencez sans moi si nécessaire. À tout de suite !"),
         ("Pourquoi la mer est-elle salée ?", "Les rivières apportent des sels, l'eau s'évapore, le sel reste.",
          "Les pluies dissolvent un peu de sel des roches, et les rivières l'apportent à la mer. L'eau s'évapore, mais le sel reste. Au fil de "
          "millions d'années, il s'est ainsi accumulé ; aujourd'hui un litre d'eau de mer en contient environ 35 grammes.")],
        "{name} achète {a} boîtes de {b} œufs et en trouve {n} de plus. Combien d'œufs cela fait-il ?",
        "{a} fois {b} font {c}, plus {n} font {d}.", "Cela fait {d} œufs : {a} × {b} + {n} = {d}.",
        _words("Le train part à {n} minutes passées.|Personne n'attendait {name} avant {day}.|Sur {m} échantillons, {n} ont été perdus en "
               "route.|Il a plu pendant {n} jours et le chemin vers {place} était sous l'eau.|Les prix ont augmenté de {n} pour cent, pas les "
               "salaires.|La commission s'est réunie {day} et a reporté sa décision."),
    ),
    Language(
        "es", _words("pan|dos kilos de manzanas|una bomba de bicicleta|una lámpara|tres cuadernos|un impermeable|un hervidor"),
        _words("el puerto|la biblioteca antigua|el mercado|la estación|el museo|el ayuntamiento|el jardín botánico"),
        _words("Clara|Tomás|Amira|Jonás|Mei|Ravi|Olga|Pedro"), _words("lunes|martes|miércoles|jueves|viernes|sábado|domingo"),
        [("¿Dónde puedo comprar {item} cerca de {place}?", "Busca una tienda cerca de {place}; no tengo un mapa.",
          "Cerca de {place} suele haber tiendas pequeñas que venden {item}. Pregunta en información o busca en un mapa a {n} minutos a pie; la "
          "mayoría cierra a las {m}."),
         ("Escríbele a {name} que llegaré {n} minutos tarde el {day}.", "Un mensaje breve y amable.",
          "Hola {name}, el {day} llegaré unos {n} minutos tarde. Empezad sin mí si hace falta. ¡Hasta luego!"),
         ("¿Por qué flotan los barcos de acero?", "El principio de Arquímedes: desplazan su peso en agua.",
          "Un barco flota porque desplaza una cantidad de agua que pesa tanto como él. El acero es más denso que el agua, pero el casco está lleno "
          "de aire, de modo que el conjunto es menos denso.")],
        "{name} compra {a} cajas de {b} lápices y encuentra {n} más. ¿Cuántos lápices hay?", "{a} por {b} son {c}; más {n} son {d}.",
        "Hay {d} lápices: {a} × {b} + {n} = {d}.",
        _words("El tren sale a y {n}.|Nadie esperaba a {name} antes del {day}.|De {m} muestras se perdieron {n}.|Llovió durante {n} días y el "
               "camino a {place} quedó bajo el agua.|Los precios subieron un {n} por ciento.|El {day} la comisión aplazó su decisión."),
    ),
    Language(
        "pt", _words("pão|dois quilos de maçãs|uma bomba de bicicleta|um candeeiro|três cadernos|uma gabardina|uma chaleira"),
        _words("o porto|a biblioteca antiga|o mercado|a estação|o museu|a câmara municipal|o jardim botânico"),
        _words("Clara|Tomás|Amira|Jonas|Mei|Ravi|Olga|Pedro"),
        _words("segunda-feira|terça-feira|quarta-feira|quinta-feira|sexta-feira|sábado|domingo"),
        [("Onde posso comprar {item} perto de {place}?", "Procura uma loja perto de {place}.",
          "Perto de {place} há normalmente lojas pequenas que vendem {item}. Pergunte nas informações ou procure num mapa a {n} minutos a pé; a "
          "maioria fecha às {m} horas."),
         ("Como funciona uma vacina?", "O sistema imunitário aprende a reconhecer uma parte do agente.",
          "Uma vacina mostra ao sistema imunitário uma parte inofensiva de um agente. O corpo aprende a reconhecê-la e guarda essa memória; se o "
          "agente verdadeiro vier, a resposta é mais rápida.")],
        "{name} compra {a} caixas com {b} laranjas e encontra mais {n}. Quantas laranjas são?", "{a} vezes {b} são {c}; mais {n} são {d}.",
        "São {d} laranjas: {a} × {b} + {n} = {d}.",
        _words("O comboio parte aos {n} minutos.|Ninguém esperava {name} antes de {day}.|De {m} amostras, {n} perderam-se.|Choveu durante {n} "
               "dias e o caminho ficou debaixo de água.|Os preços subiram {n} por cento."),
    ),
    Language(
        "zh", _words("面包|两公斤苹果|自行车打气筒|台灯|三本笔记本|雨衣|水壶"), _words("港口|旧图书馆|菜市场|火车站|博物馆|市政厅|植物园"),
        _words("小明|李华|阿米拉|王芳|张伟|陈静"), _words("星期一|星期二|星期三|星期四|星期五|星期六|星期天"),
        [("{place}附近哪里可以买到{item}？", "用户想在{place}附近买{item}。我看不到地图，只能说明怎么找。",
          "{place}附近一般有小商店出售{item}。可以去问讯处打听，或者在地图上搜索步行{n}分钟以内的商店；多数商店{m}点关门。"),
         ("帮我给{name}写条消息：{day}我会晚到{n}分钟。", "写一条简短、礼貌的消息。", "{name}你好，{day}我大概会晚到{n}分钟，你们可以先开始。一会儿见！"),
         ("为什么月亮有阴晴圆缺？", "月相取决于太阳、地球和月亮的相对位置。",
          "月亮本身不发光，我们看到的是它反射的太阳光。月亮绕地球运行时，被照亮的一面朝向我们的部分不断变化，所以一个月里会看到新月、上弦月、满月和下弦月。"),
         ("请用三句话介绍一下光合作用。", "原料、能量、产物。",
          "植物用叶绿素吸收光能。它们把二氧化碳和水变成糖，同时放出氧气。这些糖既是植物的能量来源，也是食物链的起点。")],
        "{name}买了{a}盒铅笔，每盒{b}支，又找到{n}支。一共有多少支？", "{a}乘以{b}等于{c}，再加{n}等于{d}。", "一共有{d}支：{a}×{b}+{n}={d}。",
        _words("开往{place}的火车在{n}分发车。|没有人想到{name}会在{day}之前回来。|{m}个样品中有{n}个在路上丢失了。|雨下了{n}天，通往{place}的路被水淹没。|物价上涨了百分之{n}，"
               "工资却没有变化。|委员会{day}再次开会，推迟了决定。|便宜的东西用起来不一定省钱。"), "",
    ),
    Language(
        "ja", _words("パン|りんごを二キロ|空気入れ|デスクライト|ノートを三冊|レインコート|やかん"), _words("港|古い図書館|市場|駅|博物館|市役所|植物園"),
        _words("田中さん|佐藤さん|アミラさん|鈴木さん|高橋さん"), _words("月曜日|火曜日|水曜日|木曜日|金曜日|土曜日|日曜日"),
        [("{place}の近くで{item}を買えるところはありますか。", "{place}の近くの店を探している。地図は見られないので、探し方を説明する。",
          "{place}の近くにはたいてい小さな店があり、{item}を買えます。案内所で聞くか、徒歩{n}分以内の店を地図で探してください。多くの店は{m}時に閉まります。"),
         ("{name}に、{day}は{n}分遅れると伝える文を書いてください。", "短く丁寧な文を書く。", "{name}、{day}は{n}分ほど遅れそうです。先に始めていてください。よろしくお願いします。"),
         ("地震はなぜ起こるのですか。", "プレートの動きとひずみの解放。",
          "地球の表面はいくつものプレートでできていて、少しずつ動いています。境目にひずみがたまり、岩が急にずれると、その揺れが地震として伝わります。")],
        "{name}は{b}個入りの箱を{a}箱買い、さらに{n}個見つけました。全部で何個ですか。", "{a}×{b}は{c}、{n}を足すと{d}。", "全部で{d}個です（{a}×{b}+{n}={d}）。",
        _words("{place}行きの列車は{n}分に出ます。|{name}が{day}より前に戻るとは誰も思っていなかった。|{m}個の試料のうち{n}個が途中で失われた。|雨は{n}日間降り続いた。|物価は{n}パーセント上がった。"), "",
    ),
    Language(
        "ru", _words("хлеб|два килограмма яблок|велосипедный насос|настольную лампу|три тетради|дождевик|чайник"),
        _words("порт|старая библиотека|рынок|вокзал|музей|ратуша|ботанический сад"), _words("Клара|Тимур|Амира|Ольга|Пётр|Вера"),
        _words("понедельник|вторник|среду|четверг|пятницу|субботу|воскресенье"),
        [("Где здесь можно купить {item}? Рядом {place}.", "Нужен магазин поблизости; карты у меня нет.",
          "Там, где {place}, обычно есть небольшие магазины, где продают {item}. Спросите в справочной или поищите на карте в {n} минутах "
          "пешком; большинство закрывается в {m} часов."),
         ("Почему зимой холоднее, чем летом?", "Наклон оси, угол лучей, длина дня.",
          "Ось Земли наклонена. Зимой солнце стоит низко, лучи падают под малым углом, а день короток, поэтому поверхность получает меньше тепла. "
          "Расстояние до Солнца почти ни при чём.")],
        "{name} покупает {a} коробок по {b} карандашей и находит ещё {n}. Сколько всего карандашей?", "{a} на {b} — это {c}, плюс {n} будет {d}.",
        "Всего {d} карандашей: {a} × {b} + {n} = {d}.",
        _words("Поезд отходит в {n} минут.|Никто не ждал, что {name} вернётся раньше.|Из {m} образцов {n} потеряли по дороге.|Дождь шёл {n} дней, "
               "и дорога оказалась под водой.|Цены выросли на {n} процентов, а зарплаты нет.|В {day} комиссия отложила решение."),
    ),
    Language(
        "ar", _words("الخبز|كيلوين من التفاح|مصباح مكتب|ثلاثة دفاتر|معطف مطر"), _words("الميناء|المكتبة القديمة|السوق|المحطة|المتحف"),
        _words("سارة|عمر|ليلى|يوسف"), _words("الاثنين|الثلاثاء|الأربعاء|الخميس|الجمعة"),
        [("أين يمكنني شراء {item} قرب {place}؟", "يبحث عن متجر قريب، ولا أملك خريطة.",
          "توجد عادة متاجر صغيرة قرب {place} تبيع {item}. اسأل في مكتب الاستعلامات أو ابحث في الخريطة على بعد {n} دقيقة سيرا؛ يغلق معظمها الساعة {m}."),
         ("لماذا نرى البرق قبل أن نسمع الرعد؟", "الضوء أسرع من الصوت.",
          "لأن الضوء أسرع بكثير من الصوت: يصل ضوء البرق فورا تقريبا، أما الصوت فيحتاج نحو ثلاث ثوان لكل كيلومتر.")],
        "اشترت {name} {a} علب في كل منها {b} قلما ووجدت {n} أخرى. كم قلما هناك؟", "{a} × {b} = {c}، ثم {c} + {n} = {d}.", "هناك {d} قلما.",
        _words("يغادر القطار عند الدقيقة {n}.|لم يتوقع أحد أن تعود {name} قبل يوم {day}.|من بين {m} عينة فُقدت {n}.|ارتفعت الأسعار بنسبة {n} في المئة."),
    ),
]  # fmt: skip

SUBJECTS = _words(
    "soil moisture|bridge inspections|bicycle traffic|library loans|bakery orders|tide gauges|bus punctuality|hospital linen|seed "
    "germination|street lighting|water pressure|museum visitors|parcel sorting|bee colonies|solar panels|school meals|ferry "
    "timetables|noise complaints|forest paths|printing costs|snow clearance|recycling rates|telescope time|river temperature"
)
OFFICES = _words("the works department|the survey team|the night shift|the northern office|the audit group|the volunteers|the workshop")
FINDINGS = _words(
    "rose steadily until the sensors were replaced|fell in the second quarter and did not recover|stayed within the agreed range|were "
    "recorded twice, so the totals had to be corrected|depended more on the weekday than on the weather|could not be compared with last "
    "year's, because the method had changed|were highest where nobody had expected it|differed between the two instruments by a constant "
    "factor|improved after the schedule was simplified|showed no trend that the margin of error would allow us to speak of"
)
ADVICE = _words(
    "measure again before the spring|replace the oldest units first|publish the raw figures beside the averages|leave the schedule as it "
    "is for another season|train two more people to read the gauges|write down who decides when the limit is passed|stop collecting what "
    "nobody reads|test the backup on a working day"
)
SCIENCE = [
    ("How does a refrigerator move heat from cold to warm?",
     "Second law: heat does not flow that way by itself, work is needed. Describe the cycle: evaporate, compress, condense, expand.",
     "A refrigerator does not make cold; it moves heat. A liquid evaporates at low pressure inside and takes heat from the food. The compressor "
     "raises the vapour's pressure and temperature, so that it can give the heat to the warmer room through the coils at the back, where it "
     "condenses. A valve lets the pressure drop again, and the cycle starts anew. The work of the compressor is what pays for moving heat "
     "against its natural direction."),
    ("Explain the difference between mean and median with an example.",
     "Pick incomes with one outlier. Mean is pulled by it, median is not.",
     "The mean is the sum divided by the count; the median is the middle value once the values are sorted. For the incomes 20, 22, 25, 27 and "
     "400 the mean is 98.8 and the median 25. One very large value moves the mean a lot and the median not at all, which is why the median is "
     "often the fairer description of skewed data."),
    ("Why does a hash table need to grow?", "Load factor, collisions, amortised cost.",
     "As more keys are put in, more of them share a bucket, and each lookup has to compare more candidates. When the ratio of keys to buckets, "
     "the load factor, passes a limit such as 0.75, the table allocates more buckets, typically twice as many, and moves all keys. A single "
     "insertion can then be slow, but over many insertions the cost is constant on average."),
    ("What did the printing press change?", "Cost of copies, spread of ideas, standard languages, errors multiplied too.",
     "Before printing, each copy of a book was weeks of work and had errors of its own. With movable type the first copy was expensive and "
     "every further one cheap. Prices fell, readers became more numerous, and pamphlets could cross a continent in weeks. Spelling and maps "
     "became more uniform. Mistakes were multiplied as faithfully as truths, which made the errata list necessary."),
    ("Is it true that we use only ten percent of our brain?", "A myth. Imaging shows activity everywhere; damage anywhere has effects.",
     "No. Imaging shows that over a day practically all regions are active, though not all at the same moment, and damage to almost any area "
     "has consequences. The brain is two percent of the body's mass and takes about a fifth of its energy; evolution would hardly keep nine "
     "tenths of it idle."),
    ("Compare a relational database with a document store.", "Schema, joins, transactions versus flexible nested documents. Say when each fits.",
     "| | relational | document |\n|---|---|---|\n| shape of data | tables with a schema | nested documents |\n| connections | joins, foreign keys | "
     "embedding or references |\n| consistency | transactions over rows | usually per document |\n| change of shape | migrations | at any time, checked "
     "by the program |\n\nIf the data are tied together in many ways, take the relational one. If each record is read and written as a whole and "
     "their shapes differ, documents are simpler."),
    ("How can I tell whether a mushroom is safe to eat?", "Safety: never advise to eat by rule of thumb. Recommend an expert.",
     "There is no simple rule: colour, smell, insects' bites or silver spoons tell nothing. Several deadly species look like edible ones. Eat only "
     "what an expert has identified with the mushroom in hand, and call a poison centre at once if symptoms appear, even hours later."),
    ("Prove that the square root of two is irrational.", "Classic contradiction with even numerator and denominator.",
     "Suppose $\\sqrt{2} = p/q$ in lowest terms. Then $p^2 = 2q^2$, so $p^2$ is even and hence $p$ is even, say $p = 2k$. Then $4k^2 = 2q^2$, so "
     "$q^2 = 2k^2$ is even and $q$ is even too. Both are even, which contradicts lowest terms. Therefore $\\sqrt{2}$ is irrational. $\\blacksquare$"),
]  # fmt: skip
