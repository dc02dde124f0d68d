// The page's language, for screen readers and the style sheet; Gradio knows only the browser's. Its accessible names
// of some buttons differ from the text on them, which speech input needs; others it has in English only.
() => {
  const {lang, names} = document.querySelector('.lk-head').dataset
  document.documentElement.lang = lang
  const rename = () => {
    document.querySelectorAll('.upload-container[aria-label], .thumbnail-item[aria-label]')
      .forEach((button) => button.removeAttribute('aria-label'))
    for (const [theirs, ours] of Object.entries(JSON.parse(names)))
      for (const kind of ['aria-label', 'title'])
        document.querySelectorAll(`[${kind}^="${theirs}"]`)
          .forEach((one) => one.setAttribute(kind, one.getAttribute(kind).replace(theirs, ours)))
  }
  new MutationObserver(rename).observe(document.body, {subtree: true, childList: true})
  rename()
}
