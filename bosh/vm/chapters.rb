# frozen_string_literal: true

require 'time'
require_relative 'console'
require_relative 'foundation'

# The chapters of the story.
class Chapters
  SYNCER = 'policy-server-asg-syncer'
  CONFIG = "/var/vcap/jobs/#{SYNCER}/config/#{SYNCER}.json"
  LOG = "/var/vcap/sys/log/#{SYNCER}/#{SYNCER}.stdout.log"
  MONIT_LOG = Vm::MONIT_LOG
  STATIC = 'disable-dynamic-asgs'

  def initialize(foundation)
    @foundation = foundation
    @console = Console.new(foundation)
  end

  def play
    began = Console.now
    opening
    frozen = freeze_agent
    dynamic
    drain
    kill_store
    agent_stops
    standby_stays
    static
    dynamic_again
    restart
    thaw(frozen)
    say "\nEverything is as expected. #{(Console.now - began).round} s."
  end

  def transcript = @console.text

  private

  def say(line) = @console.say(line)
  def type(where, command) = @console.type(where, command)
  def chapter(title) = say("\n== #{title}")

  def check(what, met)
    raise "not as expected: #{what}" unless met
  end

  def opening
    @foundation.raise_up
    chapter 'The deployment: VMs with monit and bpm'
    @foundation.vms.each do |vm|
      say format('    %-22s %-11s %s  %s', vm.name, vm.ip, vm.id, vm.summary.keys.join(', '))
    end
    @cell = @foundation.vm('diego-cell/0')
    # By default the kernel sends one ICMP error per second, so the next refused connections would wait.
    @cell.run!('echo 0 >/proc/sys/net/ipv4/icmp_ratelimit')
    org = @foundation.cloud('/v3/organizations', { name: 'o1' }).fetch('guid')
    space = @foundation.cloud('/v3/spaces', { name: 's1', relationships: { organization: { data: { guid: org } } } }).fetch('guid')
    @metadata = { 'org_id' => org, 'space_id' => space, 'container_workload' => 'app', 'ports' => '8080' }
    say "\nAn app in space s1 on diego-cell/0:"
    create_app
    reaches('1.2.3.4', 'open')
  end

  # monit needs more than a minute to give up on it: 6 cycles with 10 s each.
  def freeze_agent
    vm = @foundation.vm('isolated-diego-cell/0')
    chapter 'A process hangs (what monit does is at the end)'
    pid = vm.pid('cell-agent')
    type(vm.name, "kill -STOP #{pid}")
    { vm: vm, pid: pid, since: Console.now, mark: @console.mark(vm, MONIT_LOG) }
  end

  # ---- the first half: debug log of the leader, dynamic groups

  def dynamic
    chapter 'A change at the Cloud Controller: the app is cut off from 1.2.3.4'
    bind('public_networks', false)
    becomes('1.2.3.4', 'refused')

    chapter 'Find the VM of the leading syncer'
    leader = leading_vm
    other = (syncers - [leader]).first
    say "    #{leader.id} is #{leader.name}"
    type(leader.name, 'ps -eo user,pid,args | grep [s]yncer')
    type(leader.name, 'monit summary')

    chapter 'Set its log level to debug and restart it'
    type(leader.name, "grep -E 'uuid|log_level|_address' #{CONFIG}")
    type(leader.name, %q(sed -i 's/"log_level": "info"/"log_level": "debug"/' ) + CONFIG)
    check('the log level in the file is debug', JSON.parse(leader.read(CONFIG))['log_level'] == 'debug')
    mark = @console.mark(leader, LOG)
    pid = leader.pid(SYNCER)
    type(leader.name, "monit restart #{SYNCER}")
    say "\nThe other syncer has taken the lock; this one is the standby:"
    line = @console.tail(leader, LOG, mark, 'failed-to-acquire-lock', 20)
    check('lock-collision with the other as owner', line.include?('lock-collision') && data(line)['lock-owner'] == other.id)
    Vm.wait_for('monit sees the new process', 10) { leader.pid(SYNCER) != pid && leader.summary[SYNCER] == 'OK' }
    type(leader.name, 'monit summary')

    chapter "Stop the other syncer: #{leader.name} leads, with all groups in its log"
    mark = @console.mark(leader, LOG)
    type(other.name, "monit stop #{SYNCER}")
    Vm.wait_for('monit stops it', 30) { other.summary[SYNCER] == 'Not monitored' && !other.running?(SYNCER) }
    type(other.name, 'monit summary')
    @console.tail(leader, LOG, mark, 'locket-lock.acquired-lock', 10)
    type(leader.name, 'portcullisctl locks')
    mark = @console.mark(leader, LOG)
    guid = new_group('my-asg', '1.2.3.4')
    line = @console.tail(leader, LOG, mark, 'get-security-groups-retry-loop-succeeded', 10) { |found| found.include?(guid) }
    names = data(line)['security-groups'].map { |group| group['name'] }
    say "    its groups: #{names.join(', ')}"
    check('all groups are in the line', names.sort == %w[dns my-asg public_networks])
    @console.tail(leader, LOG, mark, 'skipping-update', 10) { |found| time(found) > time(line) }
    becomes('1.2.3.4', 'open')

    chapter "Start the other syncer again: it is the standby, and monit leaves it alone"
    mark = @console.mark(other, LOG)
    type(other.name, "monit start #{SYNCER}")
    @console.tail(other, LOG, mark, 'failed-to-acquire-lock', 20)
    Vm.wait_for('monit sees the process', 10) { other.summary[SYNCER] == 'OK' }
    type(other.name, 'monit summary')
  end

  # ---- what monit and BOSH do

  def drain
    chapter 'BOSH stops the leader: drain, then monit stop'
    leader = leading_vm
    other = (syncers - [leader]).first
    marks = syncers.to_h { |vm| [vm, @console.mark(vm, LOG)] }
    leader.run!("monit unmonitor #{SYNCER}")
    say "#{leader.name}:~# /var/vcap/jobs/#{SYNCER}/bin/drain job_shutdown hash_unchanged"
    began = Console.now
    say "    #{leader.drain(SYNCER).join(', ')} (a negative number: call again after so many seconds)"
    drained = Console.now - began
    type(leader.name, "monit stop #{SYNCER}")
    released = @console.tail(leader, LOG, marks[leader], 'locket-lock.released-lock', 10)
    acquired = @console.tail(other, LOG, marks[other], 'locket-lock.acquired-lock', 10)
    gap = time(acquired) - time(released)
    say format('    %s leads %d ms after %s released the lock; the drain took %.1f s', other.name, gap * 1000, leader.name, drained)
    check('the standby leads within 2 s', gap < 2)
    guid = new_group('while-draining', '5.6.7.8')
    becomes('5.6.7.8', 'open')
    unbind(guid)
    becomes('5.6.7.8', 'refused')
    type(leader.name, "monit start #{SYNCER}")
    Vm.wait_for('monit sees the process', 20) { leader.summary[SYNCER] == 'OK' }
    @standby = { vm: leader, pid: leader.pid(SYNCER), since: Console.now }
  end

  # Six failed checks would restart it; monit checks once per second.
  def standby_stays
    chapter 'monit does not restart a standby'
    vm = @standby[:vm]
    Vm.wait_for('the standby runs for 10 s', 15) { Console.now - @standby[:since] > 10 }
    type(vm.name, 'curl --silent 127.0.0.1:17019/healthz')
    check('the standby is the same process', vm.pid(SYNCER) == @standby[:pid] && vm.running?(SYNCER))
    say format('    process %d for %d s', vm.pid(SYNCER), Console.now - @standby[:since])
    check('the other one leads', leading_vm != vm)
  end

  def kill_store
    chapter 'A process is killed: monit starts it again'
    vm = @foundation.vm('policy-store/0')
    pid = vm.pid('policy-store')
    began = Console.now
    mark = @console.mark(vm, MONIT_LOG)
    type(vm.name, "kill -9 #{pid}")
    reaches('1.2.3.4', 'open')
    Vm.wait_for('monit starts the policy store', 30) do
      vm.pid('policy-store') != pid && vm.running?('policy-store') && vm.summary['policy-store'] == 'OK'
    end
    say format('    process %d instead of %d after %.1f s', vm.pid('policy-store'), pid, Console.now - began)
    @console.show(vm, MONIT_LOG, mark, /'policy-store' (process is not running|start:)/)
    guid = new_group('after-the-kill', '5.6.7.8')
    becomes('5.6.7.8', 'open')
    unbind(guid)
    becomes('5.6.7.8', 'refused')
  end

  def agent_stops
    chapter 'The agent stops: the rules in the kernel stay'
    type(@cell.name, 'monit stop cell-agent')
    Vm.wait_for('the agent ends', 30) { !@cell.running?('cell-agent') && @cell.summary['cell-agent'] == 'Not monitored' }
    reaches('1.2.3.4', 'open')
    reaches('5.6.7.8', 'refused')
    rules = @cell.run!('iptables -S')
    type(@cell.name, '/var/vcap/jobs/cell-agent/bin/pre-start && echo done')
    check('pre-start changes no rule', @cell.run!('iptables -S') == rules)
    reaches('1.2.3.4', 'open')
    reaches('5.6.7.8', 'refused')
    guid = new_group('without-agent', '5.6.7.8')
    reaches('5.6.7.8', 'refused')
    type(@cell.name, 'monit start cell-agent')
    becomes('5.6.7.8', 'open')
    unbind(guid)
    becomes('5.6.7.8', 'refused')
    same_app
  end

  # ---- the second half: the static way

  def static
    chapter 'Dynamic groups disabled: bosh deploy -o bosh/ops/disable-dynamic-asgs.yml'
    changed = @foundation.deploy(STATIC)
    say "    updated: #{changed.map(&:name).join(', ')}"
    type('api/0', 'monit summary')
    type(@cell.name, 'curl --silent --write-out " (%{http_code})" "127.0.0.1:8722/force-asgs-for-container?container=' + @app[:handle] + '"')
    say "\nAs when the cell is updated, the container is created again:"
    recreate_app
    reaches('1.2.3.4', 'open')
    reaches('5.6.7.8', 'refused')
    say "\nA change does not reach the running container:"
    guid = new_group('static', '5.6.7.8')
    stays('5.6.7.8', 'refused', 4)
    same_app
    say "\nIt does when the app is restarted, which creates its container again:"
    recreate_app
    reaches('5.6.7.8', 'open')
    say "\nThe same in the other direction:"
    unbind(guid)
    stays('5.6.7.8', 'open', 4)
    same_app
  end

  def dynamic_again
    chapter 'Dynamic groups enabled again: bosh deploy without the operations file'
    changed = @foundation.deploy
    say "    updated: #{changed.map(&:name).join(', ')}"
    say "\nThe container was not created again, and gets the change that it missed:"
    reaches('5.6.7.8', 'refused')
    reaches('1.2.3.4', 'open')
    say "\nThe next one arrives as well:"
    new_group('dynamic', '5.6.7.8')
    becomes('5.6.7.8', 'open')
    same_app
  end

  def restart
    chapter 'bosh restart: lock server and policy store'
    %w[diego-api/0 policy-store/0].map { |name| @foundation.vm(name) }.each do |vm|
      began = Console.now
      answers = @foundation.restart(vm).map { |job, numbers| "drain of #{job}: #{numbers.join(', ')}" }.join('; ')
      say format('    %s: %s; ready again after %.1f s', vm.name, answers, Console.now - began)
      reaches('5.6.7.8', 'open')
    end
    leading_vm
    reaches('23.96.32.148', 'refused')
    new_group('after-the-restart', '23.96.32.148')
    becomes('23.96.32.148', 'open')
    same_app
  end

  def thaw(frozen)
    vm = frozen[:vm]
    chapter 'The process that hangs: monit restarts it after 6 failed checks'
    Vm.wait_for('monit restarts the frozen agent', 120) do
      vm.pid('cell-agent').positive? && vm.pid('cell-agent') != frozen[:pid] && vm.run('curl --silent --fail 127.0.0.1:8721/healthz').last
    end
    say format('    process %d instead of %d, %d s after the stop', vm.pid('cell-agent'), frozen[:pid], Console.now - frozen[:since])
    @console.show(vm, MONIT_LOG, frozen[:mark], /'cell-agent' (failed|trying|stop:|start:|connection)/)
  end

  # ---- syncers

  def syncers = %w[api/0 api/1].map { |name| @foundation.vm(name) }

  def leading_vm
    locks = type('api/0', 'portcullisctl locks')
    syncers.find { |vm| locks.include?(vm.id) } or raise 'no syncer holds the lock'
  end

  def data(line) = JSON.parse(line).fetch('data')
  def time(line) = Time.iso8601(JSON.parse(line).fetch('timestamp'))

  # ---- Cloud Controller

  def bind(name, running)
    guid = type(nil, "cf curl '/v3/security_groups?names=#{name}' | jq -r '.resources[0].guid'").strip
    type(nil, "cf curl /v3/security_groups/#{guid} -X PATCH -d '{\"globally_enabled\":{\"running\":#{running}}}' | jq -c '[.name, .globally_enabled]'")
    @changed = Console.now
  end

  def new_group(name, address)
    body = JSON.generate(name: name, globally_enabled: { running: true }, rules: [{ protocol: 'all', destination: address }])
    guid = type(nil, "cf curl /v3/security_groups -d '#{body}' | jq -r .guid").strip
    @changed = Console.now
    guid
  end

  def unbind(guid)
    type(nil, "cf curl /v3/security_groups/#{guid} -X DELETE")
    @changed = Console.now
  end

  # ---- the app

  def create_app
    handle = "appA-#{SecureRandom.hex(4)}"
    metadata = @metadata.merge('policy_group_id' => handle, 'app_id' => handle)
    groups = @foundation.cloud('/v3/security_groups?globally_enabled_running=true').fetch('resources')
    given = { metadata: metadata, rules: groups.flat_map { |group| group['rules'] } }
    pid = @cell.run!("#{__dir__}/container add #{handle} 10.255.1.2", input: JSON.generate(given)).strip
    @app = { handle: handle, pid: pid, identity: identity(pid) }
    say "    container #{handle}, process #{pid}, #{@app[:identity]}"
  end

  def recreate_app
    @cell.run!("#{__dir__}/container remove #{@app[:handle]} 10.255.1.2")
    create_app
  end

  def identity(pid) = @cell.run!("readlink /proc/#{pid}/ns/net").strip

  def same_app
    check('the app was not restarted', identity(@app[:pid]) == @app[:identity])
    say "    the app was not restarted: process #{@app[:pid]}, #{@app[:identity]}"
  end

  def attempt(address, seconds = 2) = "ip netns exec #{@app[:handle]} timeout #{seconds} bash -c '</dev/tcp/#{address}/80'"

  def outcome(command)
    output, success = @cell.run(command)
    return 'open' if success

    output.include?('Connection refused') ? 'refused' : "no answer (#{output.strip})"
  end

  # One connection has that outcome.
  def reaches(address, wanted)
    say "#{@cell.name}:~# #{attempt(address)}"
    seen = outcome(attempt(address))
    say "    #{seen}"
    check("tcp #{address}:80 is #{wanted}", seen == wanted)
  end

  # Connections, one after the other, until one has that outcome. A refused one lasts a
  # second, so attempts are cut short where an open one is awaited.
  def becomes(address, wanted)
    command = attempt(address, wanted == 'open' ? 0.2 : 2)
    say "#{@cell.name}:~# #{command}     # repeated until #{wanted}"
    Vm.wait_for("tcp #{address}:80 becomes #{wanted}", 10) { outcome(command) == wanted }
    say format('    %s, %d ms after the response of the Cloud Controller', wanted, (Console.now - @changed) * 1000)
  end

  # All connections of some seconds have that outcome.
  def stays(address, wanted, seconds)
    say "#{@cell.name}:~# #{attempt(address)}     # repeated for #{seconds} s"
    limit = Console.now + seconds
    count = 0
    while Console.now < limit
      seen = outcome(attempt(address))
      check("tcp #{address}:80 stays #{wanted}, but is #{seen}", seen == wanted)
      count += 1
    end
    say "    #{wanted}, all #{count} times"
  end
end
