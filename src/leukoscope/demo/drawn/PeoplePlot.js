// A dot opens its cell; the table opens it by the keyboard.
element.addEventListener("click", (event) => {
  const dot = event.target.closest("[data-number]");
  if (dot) {
    trigger("select", { number: Number(dot.dataset.number) });
  } else if (event.target.closest(".stop")) {
    trigger("stop");
  }
});
document.addEventListener("leukoscope:given", (event) => {
  if (event.detail.shown(element)) {
    const { words, problem } = event.detail;
    props.value = { title: words, reading: !problem, problem };
  }
});
