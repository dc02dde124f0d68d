// The value is the name of an example, or the paths of files on their way to the model. The newest wins: what was sent
// late, of an earlier choice, is dropped.
const AT_ONCE = 4;
const AWAY = "The server is away. It is asked again, by itself, once it is back.";
window.leukoscope ??= { asked: 0 };
const note = (words) => {
  element.querySelector(".note").textContent = words;
};
const isShown = () => element.checkVisibility();
const isBeside = (other) => other.closest(".tabitem") === element.closest(".tabitem");
// What stands beside it shows at once that something else is asked.
const tell = (detail) =>
  document.dispatchEvent(new CustomEvent("leukoscope:given", { detail: { ...detail, shown: isBeside } }));

// The address names what can be opened again by it: of an own picture only that there was one.
function keepInAddress({ example = "", files }) {
  const [name, , cell] = example.split("-");
  const isOwn = files?.length || ["own", "handed"].includes(name);
  const values = isOwn ? { own: "1" } : { example: name, cell };
  const address = new URL(location);
  for (const key of ["example", "cell", "own"]) {
    values[key] ? address.searchParams.set(key, values[key]) : address.searchParams.delete(key);
  }
  history.replaceState(null, "", address);
}

async function send(files, number) {
  const waiting = files.map((file, place) => ({ file, place }));
  const sent = [];
  async function next() {
    while (waiting.length && number === window.leukoscope.asked) {
      const { file, place } = waiting.shift();
      sent[place] = { upload: (await upload(file)).path, name: file.webkitRelativePath || file.name };
      note(files.length > 1 ? "Sent " + Object.keys(sent).length + " of " + files.length : "");
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, next));
  return sent;
}

async function give(list) {
  const files = [...(list ?? [])].filter((file) => file.size);
  if (!files.length) {
    if (list?.length) {
      tell({ problem: "The file is empty. Copy or export it again." });
    }
    return;
  }
  const number = ++window.leukoscope.asked;
  keepInAddress({ files });
  const isPicture = files.length === 1 && files[0].type.startsWith("image/");
  const words = "Sending …";
  const picture = isPicture ? URL.createObjectURL(files[0]) : "";
  tell({ picture, words });
  note("");
  try {
    const sent = await send(files, number);
    if (number === window.leukoscope.asked) {
      props.value = { ...props.value, example: "", files: sent };
    }
  } catch {
    if (number === window.leukoscope.asked) {
      const problem = "Lost: the server cannot be reached, or refused it. Give it again.";
      note(problem);
      tell({ problem });
    }
  }
}

function press(event) {
  const tile = event.target.closest("[data-name]");
  if (tile) {
    window.leukoscope.asked += 1;
    note("");
    tell({ words: "Asking the model …" });
    // With a number of its own: the same tile asks again.
    const value = { ...props.value, example: tile.dataset.name, files: [], asked: window.leukoscope.asked };
    // Now: without the server, Gradio loads the page again once it is back.
    keepInAddress(value);
    props.value = value;
    fetch("healthz").catch(() => tell({ words: AWAY, picture: tile.querySelector("img").src }));
  }
}

function over(event) {
  const hasFiles = event.dataTransfer?.types.includes("Files");
  if (isShown() && hasFiles) {
    event.preventDefault();
    element.classList.toggle("over", event.type === "dragover");
  }
}

// Called when another tab or the server chose, too.
window.leukoscope.keepInAddress = keepInAddress;
element.addEventListener("click", press);
element.addEventListener("change", async (event) => {
  await give(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => isShown() && give(event.clipboardData.files));
document.addEventListener("dragover", over);
document.addEventListener("dragleave", (event) => event.relatedTarget || over(event));
document.addEventListener("drop", (event) => {
  over(event);
  if (isShown()) {
    give(event.dataTransfer.files);
  }
});
