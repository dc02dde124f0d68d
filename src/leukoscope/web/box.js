// For the element below the upload. Dims the result as soon as something else is asked for, takes what is pasted or
// dropped anywhere, tells that the server cannot be reached, and follows the browser's Back.
const PICKS = '#examples button, #smear-examples button, #real-cells button, #ask-field, #ask-batch, [data-cell], ' +
  '#propose, #turn, #cover'
const page = document.body.dataset, files = () => document.querySelector('#upload input[type=file]')
const dim = () => { page.lkBusy = '1' }
let giving = false, last = Promise.resolve(), wanted = null
// What is given while an answer is awaited, the first one too, is read after it; the box takes nothing meanwhile.
const busy = () => page.lkBusy || !document.querySelector('#visit [data-model]')
const free = async (isFree) => { while (!isFree()) await new Promise((done) => setTimeout(done, 50)) }
const give = (list) => {
  last = last.then(() => free(() => files() && !busy())).then(async () => {
    dim()
    const transfer = new DataTransfer()
    for (const file of await list) transfer.items.add(file)
    await free(files)
    files().files = transfer.files
    giving = true
    files().dispatchEvent(new Event('change', {bubbles: true}))
    giving = false
  }).catch(() => { delete page.lkBusy })
}
document.addEventListener('change', (event) => {
  if (!event.target.closest?.('#upload') || !event.target.files?.length) return
  if (giving || !busy()) return dim()
  event.stopPropagation()
  give([...event.target.files])
}, true)
// Beside the box, the browser would leave the page for the file.
document.addEventListener('dragover', (event) => event.preventDefault())
document.addEventListener('drop', (event) => {
  if (!event.dataTransfer?.files.length) return
  event.preventDefault()
  event.stopPropagation()
  const entries = [...event.dataTransfer.items].map((one) => one.webkitGetAsEntry?.()).filter(Boolean)
  give(entries.some((one) => one.isDirectory) ? zipped(entries).then((file) => [file]) : [...event.dataTransfer.files])
}, true)
// Of what is clicked while an answer is awaited, the last is asked after it: two answers may come in any order.
document.addEventListener('click', (event) => {
  const pick = event.target.closest(PICKS)
  if (!pick) return
  if (!busy()) return dim()
  event.stopPropagation()
  wanted = pick
  last = last.then(() => free(() => !busy())).then(() => {
    if (wanted == pick && pick.isConnected) wanted = null, pick.click()
  })
}, true)
// What is dimmed takes no click (page.css), and no key.
document.addEventListener('keydown', (event) => {
  if (!page.lkBusy || event.key == 'Tab' || getComputedStyle(event.target).pointerEvents != 'none') return
  event.preventDefault()
  event.stopPropagation()
}, true)
document.addEventListener('paste', (event) => {
  if (!event.target.closest('input, textarea') && event.clipboardData.files.length) give([...event.clipboardData.files])
})
const ask = window.fetch
window.fetch = (...request) => ask(...request).catch((error) => {
  if (error.name != 'AbortError') { delete page.lkBusy; page.lkOffline = '1' }
  throw error
})
// Back leads to the tab and the example before. What the visitor gave stays: no address could open it again.
addEventListener('popstate', () => {
  const to = new URL(location).searchParams, shown = document.querySelector('#visit [data-model]')?.dataset ?? {}
  const tab = document.querySelector(`[role=tab][data-tab-id="${to.get('tab') ?? 'cell'}"]`)
  if (tab && tab.getAttribute('aria-selected') != 'true') tab.click()
  else if (shown.example) dim(), trigger('select', {index: 0, value: ''})
})
