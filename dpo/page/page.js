// The page asks the server that it came from for itself, and takes over what changed. What the reader has chosen stays.
const EVERY = 2000; // milliseconds
const STILL = 120; // seconds without a line after which a run may have stalled
const live = document.getElementById("live");
let mark = null;

function chosen(root) {
  return {
    checked: [...root.querySelectorAll("input")].filter((one) => one.checked).map((one) => one.id),
    open: [...root.querySelectorAll("details")].filter((one) => one.open).map((one) => one.id),
  };
}

function choose(root, { checked, open }) {
  for (const one of root.querySelectorAll("input")) one.checked = checked.includes(one.id);
  const radios = [...root.querySelectorAll('input[type="radio"]')];
  if (radios.length && !radios.some((one) => one.checked)) radios[0].checked = true;
  for (const one of root.querySelectorAll("details")) one.open = open.includes(one.id);
}

function ago(seconds) {
  const [count, unit] = seconds < 90 ? [seconds, "s"] : seconds < 5400 ? [seconds / 60, "min"] : [seconds / 3600, "h"];
  return `${Math.round(Math.max(count, 0))} ${unit}`;
}

// When the run wrote last, by the clock of the machine that serves it: the reader's may be another.
function watching(reply) {
  const wrote = document.querySelector("#state time");
  const seconds = wrote ? (Date.parse(reply.headers.get("Date")) - Date.parse(wrote.dateTime)) / 1000 : 0;
  live.textContent = wrote ? `watching; last line ${ago(seconds)} ago` : "watching";
  live.className = seconds > STILL ? "still" : "";
}

async function refresh() {
  try {
    const reply = await fetch("/", { cache: "no-store", headers: mark ? { "If-None-Match": mark } : {} });
    if (reply.status === 200) {
      const first = mark === null;
      mark = reply.headers.get("ETag");
      const fresh = new DOMParser().parseFromString(await reply.text(), "text/html");
      const before = document.querySelector("main");
      const after = document.importNode(fresh.querySelector("main"), true);
      if (!first || after.innerHTML !== before.innerHTML) {
        const [x, y] = [scrollX, scrollY];
        choose(after, chosen(before));
        before.replaceWith(after);
        document.title = fresh.title;
        scrollTo({ left: x, top: y, behavior: "instant" });
      }
    }
    watching(reply);
  } catch {
    live.textContent = "no longer served; this is how it was";
    live.className = "gone";
  }
  setTimeout(refresh, EVERY);
}

refresh();
