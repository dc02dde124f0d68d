// For the strip: takes what is chosen, pasted or dropped anywhere, and asks whether the server is there.
const give = async (list) => {
  const transfer = new DataTransfer()
  for (const file of await list) transfer.items.add(file)
  if (!transfer.files.length) return
  // Until the server has read it, neither the old picture nor its answer stands there.
  document.body.dataset.lkGiven = '1'
  window.lkTab?.('cell')
  // The box has no place for a file while it sends another.
  const input = () => document.querySelector('#upload input[type=file]')
  while (!input()) await new Promise((done) => setTimeout(done, 50))
  input().files = transfer.files
  input().dispatchEvent(new Event('change', {bubbles: true}))
}
element.addEventListener('click', (event) => {
  if (event.target.closest('[data-choose]')) document.querySelector('#upload input[type=file]')?.click()
})
// Beside the box, the browser would leave the page for the file.
document.addEventListener('dragover', (event) => event.preventDefault())
document.addEventListener('drop', (event) => {
  if (!event.dataTransfer?.files.length) return
  event.preventDefault()
  event.stopPropagation()
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean)
  const isFolder = entries.some((entry) => entry.isDirectory)
  give(isFolder ? zipped(entries).then((file) => [file]) : [...event.dataTransfer.files])
}, true)
document.addEventListener('paste', (event) => {
  if (!event.target.closest('input, textarea') && event.clipboardData.files.length) give([...event.clipboardData.files])
})
setInterval(() => fetch('healthz', {cache: 'no-store'}).then(
  () => {
    delete document.body.dataset.lkLost
  },
  () => {
    document.body.dataset.lkLost = '1'
    sessionStorage.lkLost = '1'
  },
), 4000)
// Gradio's accessible names of some buttons differ from the text on them, which speech input needs; and what scrolls by
// itself is reached by keyboard.
new MutationObserver(() => {
  document.querySelectorAll('#card :is(pre, table)').forEach((wide) => {
    wide.tabIndex = 0
  })
}).observe(document.body, {subtree: true, childList: true})
