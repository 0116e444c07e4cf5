// The languages that Whisper supports, with their names in the language of the page.

const CODES =
  "af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr " +
  "ht hu hy id is it ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc " +
  "pa pl ps pt ro ru sa sd si sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo yue " +
  "zh";

// Chromium's Intl.DisplayNames has no names for these.
const MISSING_NAMES = { ba: "Bashkir", bo: "Tibetan" };

/** Returns [code, name] for every language, sorted by name. */
export function languages() {
  const names = new Intl.DisplayNames(document.documentElement.lang, { type: "language" });
  const named = CODES.split(" ").map((code) => [code, MISSING_NAMES[code] ?? names.of(code)]);
  return named.sort(([, one], [, other]) => one.localeCompare(other));
}
