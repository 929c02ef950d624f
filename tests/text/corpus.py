"""The lines that tokenizers are compared on: 6,000, the same on every Python, made of nothing but this file.

Sentences in 26 languages, code in 12, and what breaks tokenizers: runs, controls, emoji, mixed scripts, digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

SENTENCES = [
    "The llama looked up from the grass, unimpressed, and went on chewing as if nothing had happened.",
    "I'll say it once: you're late, we've eaten, they'd left, it's cold, and that'll do; don't ask.",
    "El río bajó crecido toda la noche y, por la mañana, ¿quién iba a cruzarlo? ¡Nadie, ni los perros!",
    "Les élèves n'étaient pas prêts, mais l'œuvre qu'ils ont jouée à Noël fut très applaudie.",
    "Übergrößenträger müssen sich öfter bücken; das Maß der Türen ändert sich schließlich nicht.",
    "Não há pão na despensa, então amanhã cedo vamos à padaria com o avô e a irmãzinha.",
    "Perché l'uomo è così? Non c'è più tempo, disse, e chiuse la finestra sull'altopiano.",
    "De dag begon koud; 's ochtends lag er ijs op de sloot en één zwaan liep erover.",
    "På fjället växer gräset sent, och den som går där ensam hör både vind och vatten.",
    "Kevään ensimmäisenä päivänä jää suli järveltä, ja koko kylä lähti yötä myöten kävelylle.",
    "Zażółć gęślą jaźń, powiedział nauczyciel, a dzieci śmiały się aż do dzwonka.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy, zatímco řeka tiše plynula údolím.",
    "Az árvíztűrő tükörfúrógép nem fért be a szobába, ezért kint hagytuk az esőben.",
    "Ceața s-a ridicat încet peste vale și țăranii au ieșit la coasă înaintea răsăritului.",
    "Yağmur dindiğinde çocuklar sokağa çıktı; İstanbul'un ışıkları ıslak taşlarda parlıyordu.",
    "Сегодня утром выпал снег, и подъезд к дому замело так, что машина не завелась.",
    "Ранок був тихий, і лише їжак шелестів у садку біля криниці, шукаючи їжу.",
    "Η θάλασσα ήταν ήρεμη και οι ψαράδες μάζευαν τα δίχτυα τους πριν ξημερώσει.",
    "בבוקר ירד גשם חזק, אבל עד הצהריים השמיים התבהרו והילדים יצאו לשחק.",
    "في الصباح الباكر يذهب الفلاح إلى الحقل، ثم يعود عند الظهر ليشرب الشاي مع جيرانه.",
    "صبح زود به بازار رفتیم و نان تازه خریدیم؛ هوا سرد بود اما می‌ارزید.",
    "सुबह की ठंडी हवा में किसान खेत की ओर चल पड़ा और बच्चे स्कूल जाने लगे।",
    "সকালবেলা নদীর ধারে কুয়াশা ছিল, তবু মাঝি নৌকা নিয়ে বেরিয়ে পড়ল।",
    "காலையில் மழை பெய்தது, ஆனாலும் குழந்தைகள் பள்ளிக்கு நடந்தே சென்றார்கள்.",
    "ตอนเช้าอากาศเย็นสบาย ชาวนาจึงออกไปเกี่ยวข้าวก่อนพระอาทิตย์ขึ้น",
    "Buổi sáng sương mù phủ kín thung lũng, người nông dân dắt trâu ra đồng từ rất sớm.",
    "今天早上下了一场大雪，孩子们高兴得不得了，连早饭都没吃就跑出去了。",
    "昨日の夜、山の上で星を見ていたら、リャマが三頭こちらをじっと見つめていました。",
    "오늘 아침에는 안개가 짙어서 강 건너편의 마을이 전혀 보이지 않았습니다.",
    "დილით მთაში თოვდა, მაგრამ შუადღისას მზემ გამოანათა და ბილიკიც გაშრა.",
    "Առավոտյան քամին դադարեց, և ձկնորսները վերադարձան նավահանգիստ։",
    "በጠዋት ፀሐይ ስትወጣ ገበሬው ወደ እርሻው ሄደ።",
]

CODE = [
    "def {0}(self, {1}: int = {n}) -> list[str]:",
    "    return [{0} for {0} in self.{1} if {0} is not None and {0} != '{2}']",
    "\t\tif err := {0}.{1}(ctx, &{2}); err != nil {{ return fmt.Errorf(\"{0}: %w\", err) }}",
    "const {0} = async ({{ {1}, ...rest }}) => (await fetch(`/api/${{{1}}}?{2}={n}`)).json();",
    "template <typename T> static inline T* {0}(std::vector<T>& {1}) noexcept {{ return &{1}[{n}]; }}",
    "fn {0}<'a>(&'a mut self, {1}: &str) -> Result<Vec<u8>, Box<dyn Error>> {{ todo!(\"{2}\") }}",
    "SELECT {0}.id, COUNT(*) FROM {1} AS {0} WHERE {2} >= '{n}-01-01' GROUP BY 1 HAVING COUNT(*)>{n};",
    '<div class="{0} {1}" data-{2}="{n}"><a href="https://example.org/{0}?q={1}#{2}">{0}</a></div>',
    '{{"{0}": [{n}, -1.5e-3, null, true], "{1}": {{"{2}": "\\u00e9\\n\\t"}}}}',
    "#define {0}({1}) (((({1}) << 0x{n}) & ~0xFFul) | {2}) /* {0} */",
    "  - name: {0}\n    {1}: !!str {n}\n    {2}: |\n      line one\n\n      line two\n",
    "for f in $(ls -1 *.{0} | grep -v '^{1}'); do mv \"$f\" \"${{f%.{0}}}_{n}.{2}\" 2>&1 || exit 1; done",
    "\\begin{{equation}} {0}_{{{1}}} = \\sum_{{i=1}}^{{{n}}} \\frac{{{2}^i}}{{i!}} \\label{{eq:{0}}} \\end{{equation}}",
    "        raise {0}Error(f\"{{{1}!r}} not in {2}\")  # noqa: E{n}\n\n\n",
    "@media (max-width:{n}px) {{ .{0} > .{1}::before {{ content: \"{2}\"; margin: 0 auto !important }} }}",
    "| {0} | {1} | {n:>8} |\n|---|:-:|---:|\n| **{2}** | `{0}` | ~~{n}~~ |",
]

WORDS = (
    "alpha payload tokenizer getHTTPResponse max_tokens kvCache XMLParser idx tmp9 user_id toString BufferedReader "
    "snake_case camelCase SCREAMING_CASE x1y2 __init__ i18n Ångström naïve façade résumé Straße МирТруд 数据 変数"
).split()

EMOJI = (
    "😀 😂 🦙 ❤️ ❤ 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇵🇪 🇧🇴 1️⃣ 🧑🏿‍🚀 ☃️ © ™️ 🤷‍♀️ 🫠"
).split()

# First and last code points of blocks that have long been full of letters, marks, digits or symbols.
BLOCKS = [
    (0x00A1, 0x00FF), (0x0100, 0x017F), (0x0180, 0x024F), (0x0250, 0x02AF), (0x0300, 0x036F), (0x0391, 0x03C9),
    (0x0400, 0x045F), (0x0531, 0x0556), (0x05D0, 0x05EA), (0x0621, 0x064A), (0x0660, 0x0669), (0x0905, 0x0939),
    (0x0966, 0x096F), (0x0E01, 0x0E2E), (0x10D0, 0x10F0), (0x1100, 0x1159), (0x1200, 0x1206), (0x13A0, 0x13F4),
    (0x1E00, 0x1EFF), (0x2010, 0x2027), (0x2030, 0x205E), (0x2070, 0x2071), (0x2080, 0x2089), (0x20A0, 0x20AC),
    (0x2100, 0x2138), (0x2150, 0x2188), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2460, 0x249B), (0x2500, 0x257F),
    (0x2800, 0x28FF), (0x3001, 0x3029), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x3220, 0x3229), (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xFB00, 0xFB06), (0xFF01, 0xFF5E), (0x10000, 0x1000B), (0x1D400, 0x1D454),
    (0x1F300, 0x1F320), (0x1F600, 0x1F64F), (0x20000, 0x200FF), (0xE0061, 0xE007A),
]  # fmt: skip

SPACES = [" ", "\t", "\n", "\r", "\r\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\ufeff", "\u2028", "\x0b", "\x85"]

# What has broken one tokenizer or another.
HARD = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "\r", " \t \n \r\n  x", "x ", " x", "  x  y   z",
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'Ve 'M 'lL 'D 'ſ it'ſ ’s", "I'M HERE, they'LL GO, he'D'VE", "'''", "''s",
    "0", "00", "000", "0000", "1234567890", "3.14159", "1,000,000", "١٢٣٤٥", "१२३", "½⅓Ⅷ²³", "x²+y²", "1st2nd3rd",
    "0x1F_FF", "v1.2.3-rc4", "2026-11-23T05:31:00Z", "+1 (555) 010-9999", "a1b22c333d4444", "1 2 3  4   5", "7 %",
    "<|im_start|>user", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>", "<s>", "</s>", "<unk>",
    "<|im_end", "im_end|>", "<|", "|>", "<<|im_end|>>", "[INST] hi [/INST]", "<<SYS>>", "<0x0A>", "<0xFF>", "\u2581",
    "a\u2581b", " \u2581 ", "\x00", "\x01\x02\x7f", "a\x00b", "\x1b[31mred\x1b[0m", "\u0000\u0000", "\ufffd", "\ufffe",
    "e\u0301", "é", "ﬁ", "ﷺ", "𝔘𝔫𝔦", "ǅ", "ʰ", "ß ẞ SS", "İ i ı I", "ΌΣΟΣ όσος", "Ⓐⓐ", "ªº", "ñ n\u0303", "한\u1112\u1161\u11ab",
    "\u200d", "a\u200db", "\u202eabc", "👩‍👩‍👧‍👦👩‍👩‍👧", "🏳️‍🌈", "🇵🇪🇧🇴", "❤️❤", "👍🏽👍", "\U000e0067", "\U0010ffff", "\ue000",
    "ก็", "क्षि", "ক্ষ", "சு", "မြန်", "བོད", "ខ្មែរ", "ᓀᐦ", "ᚠᛇᚻ", "𒀀𒁀", "𐎀", "中文abc中文", "中 文", "「」。、", "ー〜",
    "http://a.b/c?d=e&f=%20#g", "user@example.com", "C:\\Users\\x\\n", "/usr/bin/env", "a/b//c", "--flag=x", "$HOME",
    "!!!", "?!?!", "...", "…", "—–-", "=====", "#### ", "*/", "/*", "//", "\\\\", "((()))", "{}[]<>", "&amp;", "`a`",
    "hello world", "Hello World", "HELLO WORLD", "helloWorld", "HelloWORLDfoo", "hELLO", "iPhone", "McDonald", "aB",
    "don't", "DON'T", "l'été", "O'Neil's", "rock'n'roll", "y'all'd've", "ПРИВЕТ Привет", "ΑΒΓαβγ", "ĄĆĘ ąćę", "ÀÉ",
    "\n\n\n\n", " \n \n", "\n\t\n", "a\n\nb", "a \n b", "a\n  b", "a\r\n\r\nb", "\t\ta", "x\n", "x\n\n", "x \n", "end.\n\n",
    "\u00a0\u00a0x", "\u3000x", "x\u2028y", "\u200bx", "x\u00a0", "\u2003\u2003", "\x85x", "\x0b\x0c", "\x1c\x1d\x1e\x1f",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ababababababababab", "zzzzzzz", "!?" * 20, "-" * 80, "=" * 79 + ">", "." * 33,
]  # fmt: skip


class Dice:
    """Marsaglia's xorshift: the standard library promises no sequence of choices across versions."""

    def __init__(self, seed: int) -> None:
        self.state = seed * 0x9E3779B97F4A7C15 % 2**64 or 1

    def below(self, n: int) -> int:
        x = self.state
        x ^= x << 13 & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 7
        x ^= x << 17 & 0xFFFFFFFFFFFFFFFF
        self.state = x
        return (x >> 11) % n

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def character(self) -> str:
        first, last = self.pick(BLOCKS)
        return chr(first + self.below(last - first + 1))


def sentence(dice: Dice) -> str:
    """Part of a sentence, or of two in different languages."""
    text = dice.pick(SENTENCES)
    if dice.below(3) == 0:
        text += dice.pick([" ", "", "\n", " — "]) + dice.pick(SENTENCES)
    start = dice.below(max(1, len(text) // 2))
    text = text[start : start + 10 + dice.below(len(text))]
    return dice.pick([str, str, str, str.upper, str.title])(text)


def code(dice: Dice) -> str:
    words = [dice.pick(WORDS) for _ in range(3)]
    line = dice.pick(CODE).format(*words, n=dice.below(10 ** (1 + dice.below(6))))
    return dice.pick(["", "", "    ", "\t", "        "]) + line


def characters(dice: Dice) -> str:
    """Letters, marks and symbols of many scripts, with no sense."""
    return "".join(dice.character() for _ in range(1 + dice.below(24)))


def mixture(dice: Dice) -> str:
    kinds: list[Callable[[], str]] = [
        lambda: dice.pick(WORDS),
        lambda: dice.pick(EMOJI),
        lambda: dice.pick(SPACES) * (1 + dice.below(4)),
        lambda: str(dice.below(10 ** (1 + dice.below(9)))),
        lambda: chr(32 + dice.below(95)) * (1 + dice.below(3)),
        lambda: dice.pick(HARD),
        dice.character,
    ]
    return "".join(dice.pick(kinds)() for _ in range(2 + dice.below(12)))


def runs(dice: Dice) -> str:
    """Long repetitions of few characters."""
    alphabet = [dice.pick([" ", "\n", "\t", "a", "0", "é", "-", "=", "中", "😀", "\u00a0", "e"]) for _ in range(2)]
    return "".join(dice.pick(alphabet) * (1 + dice.below(40)) for _ in range(1 + dice.below(6)))


def controls(dice: Dice) -> str:
    return "".join(chr(dice.below(33) if dice.below(2) else 97 + dice.below(26)) for _ in range(1 + dice.below(20)))


def lines() -> list[str]:
    dice = Dice(2026)
    plan = [(sentence, 1800), (code, 1200), (mixture, 1500), (characters, 700), (runs, 350), (controls, 250)]
    made = [kind(dice) for kind, n in plan for _ in range(n)]
    return HARD + made
