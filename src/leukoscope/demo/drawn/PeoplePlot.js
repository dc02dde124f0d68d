// A dot opens its cell. A person is one stop of the Tab key; arrow keys go on from dot to dot.
function press(event) {
  const dot = event.target.closest("[role=button][data-number]");
  if (dot) {
    trigger("select", { number: Number(dot.dataset.number) });
  } else if (event.target.closest(".stop")) {
    trigger("stop");
  }
}

element.addEventListener("click", press);
element.addEventListener("keydown", (event) => {
  const dot = event.target.closest("[data-number]");
  const next = { ArrowRight: dot?.nextElementSibling, ArrowLeft: dot?.previousElementSibling }[event.key];
  if (dot && [" ", "Enter"].includes(event.key)) {
    event.preventDefault();
    press(event);
  } else if (next?.matches("circle")) {
    event.preventDefault();
    dot.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
});
// What has the focus is named below the dots.
const axis = () => element.querySelector(".axis span:nth-child(2)");
let axisWords = "";
element.addEventListener("focusin", (event) => {
  const title = event.target.querySelector?.("title");
  if (title) {
    axisWords ||= axis().textContent;
    axis().textContent = title.textContent;
  }
});
element.addEventListener("focusout", () => {
  if (axisWords) {
    axis().textContent = axisWords;
    axisWords = "";
  }
});
document.addEventListener("leukoscope:given", (event) => {
  if (event.detail.shown(element)) {
    const { words, problem } = event.detail;
    props.value = { title: words, reading: !problem, problem };
  }
});
