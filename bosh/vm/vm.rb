# frozen_string_literal: true

require 'fileutils'
require 'open3'
require 'securerandom'

# A VM of the foundation: namespaces with their own /var/vcap, processes, network and host
# name, in which monit runs the jobs.
class Vm
  SYSTEM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
  PATH = "/var/vcap/bosh/bin:#{SYSTEM_PATH}"
  MONIT_LOG = '/var/vcap/monit/monit.log'
  MONITRC = <<~TEXT
    set daemon 1
    set limits { startTimeout: 10 s }
    set log /var/vcap/monit/monit.log
    set pidfile /var/vcap/monit/monit.pid
    set idfile /var/vcap/monit/monit.id
    set statefile /var/vcap/monit/monit.state
    set httpd port 2822 and use address 127.0.0.1
      allow localhost
    include /var/vcap/monit/*.monitrc
    include /var/vcap/monit/job/*.monitrc
  TEXT

  # In a user namespace with one user, that is vcap as well.
  VCAP = File.readlines('/proc/self/uid_map').first.split.last.to_i > 1 ? 1000 : 0

  attr_reader :group, :index, :id, :ip

  def initialize(group, index, address, directory)
    @group = group
    @index = index
    @id = SecureRandom.uuid
    @ip = address
    @root = "#{directory}/#{hostname}"
  end

  def name = "#{group}/#{index}"
  def hostname = "#{group}-#{index}"
  def fields = { 'id' => id, 'ip' => ip, 'networks' => { 'default' => { 'ip' => ip } } }
  def path(inside) = inside.sub(%r{\A/var/vcap}, "#{@root}/vcap")
  def read(inside) = File.exist?(path(inside)) ? File.binread(path(inside)).force_encoding('UTF-8') : ''

  # The ends of all logs, for the report of a failure.
  def logs
    files = [path(MONIT_LOG), *Dir[path('/var/vcap/sys/log/*/*.log')]]
    files.map { |file| "--- #{name} #{file}\n#{File.readlines(file).last(15).map { |line| line[0, 500] }.join}" }.join
  end

  # Creates the files, connects the VM to the bridge, and starts monit.
  def boot(hosts, programs, monit)
    write_files(hosts, monit)
    Vm.run('ip', 'netns', 'add', hostname)
    Vm.run('ip', 'link', 'add', hostname[0, 15], 'master', 'bosh0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', hostname)
    Vm.run('ip', 'link', 'set', hostname[0, 15], 'up')
    ["addr add #{ip}/16 dev eth0", 'link set eth0 up', 'route add default via 10.0.0.1'].each do |line|
      Vm.run('ip', '-n', hostname, *line.split)
    end
    @unshare = Process.spawn({ 'PROGRAMS' => programs, 'MONIT' => monit }, 'ip', 'netns', 'exec', hostname,
                             'unshare', '--mount', '--pid', '--uts', '--fork', '--kill-child', '--mount-proc',
                             "#{__dir__}/init", @root, hostname, %i[out err] => "#{@root}/init.log")
    Vm.wait_for("monit of #{name} answers (#{@root}/init.log)", 20) { process_one && run('monit summary').last }
  end

  # Runs a command of the VM's shell: its output, and whether it succeeded.
  def run(command, input: '')
    output, status = Open3.capture2e('nsenter', "--target=#{process_one}", '--mount', '--pid', '--net', '--uts', '--wd=/',
                                     'env', '-i', "PATH=#{PATH}", 'HOME=/root', 'bash', '-c', command, stdin_data: input)
    [output, status.success?]
  end

  def run!(command, input: '')
    output, success = run(command, input: input)
    raise "#{name}: #{command}: #{output}" unless success

    output
  end

  # The pid of a job's process, in the VM.
  def pid(job) = read("/var/vcap/sys/run/bpm/#{job}/#{job}.pid").to_i

  def running?(job) = pid(job).positive? && run("kill -0 #{pid(job)}").last

  # What monit says about each process.
  def summary
    run('monit -B summary').first.lines.grep(/ Process\s*$/).to_h do |line|
      process, status = line.strip.sub(/\s+Process\z/, '').split(/\s+/, 2)
      [process, status]
    end
  end

  # What the BOSH agent does when it starts jobs: files, pre-start, monit, post-start.
  def start(files)
    write_jobs(files)
    jobs = files.keys.map { |file| file.split('/').first }.uniq
    jobs.each { |job| hook(job, 'pre-start') }
    jobs.each_with_index do |job, index|
      File.write(path("/var/vcap/monit/job/#{format('%04d', index)}_#{job}.monitrc"), files.fetch("#{job}/monit"))
    end
    reload_monit
    processes = files.values_at(*jobs.map { |job| "#{job}/monit" }).flat_map { |text| text.scan(/^check process (\S+)/) }.flatten
    processes.each { |process| run!("monit start #{process}") }
    Vm.wait_for("all processes of #{name} run", 30) { processes.all? { |process| summary[process] == 'OK' } }
    jobs.each { |job| hook(job, 'post-start') }
  end

  # What the agent does when it stops jobs: no monitoring, drain, monit stop. Returns the
  # answers of the drain scripts.
  def stop
    summary.each_key { |job| run!("monit unmonitor #{job}") }
    answers = jobs.to_h { |job| [job, drain(job)] }.reject { |_, numbers| numbers.empty? }
    # monit 5.33 does not call the stop program of a process that it does not monitor;
    # monit 5.2.5 does, and BOSH relies on it.
    summary.each_key { |job| run!("monit stop #{job} && /var/vcap/jobs/bpm/bin/bpm stop #{job}") }
    FileUtils.rm_rf(Dir[path('/var/vcap/monit/job/*'), path('/var/vcap/jobs/*')] - [path('/var/vcap/jobs/bpm')])
    reload_monit
    answers
  end

  # A second reload, or a command, before the end of the first would get lost.
  def reload_monit
    done = -> { read(MONIT_LOG).scan('Monit reloaded').length }
    before = done.call
    run!('monit reload')
    Vm.wait_for("monit of #{name} reads its files", 10) { done.call > before && run('monit summary').last }
  end

  def jobs = Dir.children(path('/var/vcap/jobs')).sort - ['bpm']

  # Dynamic drain: a negative number asks for another call after so many seconds. Returns
  # the numbers.
  def drain(job)
    script = "/var/vcap/jobs/#{job}/bin/drain"
    return [] unless File.exist?(path(script))

    numbers = []
    until numbers.last&.>=(0)
      numbers << Integer(run!("#{script} #{numbers.empty? ? 'job_shutdown' : 'job_check_status'} hash_unchanged").strip)
      sleep numbers.last.abs
    end
    numbers
  end

  def hook(job, name)
    script = "/var/vcap/jobs/#{job}/bin/#{name}"
    run!(script) if File.exist?(path(script))
  end

  def self.run(*command, **options)
    output, status = Open3.capture2e(*command, **options)
    raise "#{command.join(' ')}: #{output}" unless status.success?

    output
  end

  def self.wait_for(what, seconds)
    limit = Process.clock_gettime(Process::CLOCK_MONOTONIC) + seconds
    loop do
      result = yield
      return result if result
      raise "not within #{seconds} s: #{what}" if Process.clock_gettime(Process::CLOCK_MONOTONIC) > limit

      sleep 0.05
    end
  end

  private

  # Process 1 of the VM, as a process of the foundation.
  def process_one
    @process_one ||= File.read("/proc/#{@unshare}/task/#{@unshare}/children").split.first
  end

  def write_files(hosts, monit)
    %w[bosh/bin bosh/etc jobs/bpm/bin monit/job packages/portcullis/bin sys/log sys/run data store
       data/container-metadata data/garden-cni].each { |directory| FileUtils.mkdir_p("#{@root}/vcap/#{directory}") }
    FileUtils.mkdir_p("#{@root}/etc")
    File.write("#{@root}/etc/hosts", "127.0.0.1 localhost\n#{ip} #{hostname}\n#{hosts}")
    File.write("#{@root}/etc/passwd", "root:x:0:0::/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n" \
                                      "vcap:x:#{VCAP}:#{VCAP}::/home/vcap:/bin/bash\n")
    File.write("#{@root}/etc/group", "root:x:0:\nnogroup:x:65534:\nvcap:x:#{VCAP}:\n")
    File.write(path('/var/vcap/bosh/etc/monitrc'), MONITRC, perm: 0o600)
    File.write(path('/var/vcap/bosh/bin/monit'), "#!/bin/sh\nexec #{monit} -c /var/vcap/bosh/etc/monitrc \"$@\"\n", perm: 0o755)
    File.write(path('/var/vcap/monit/empty.monitrc'), "# monit wants at least one file\n")
    FileUtils.cp("#{__dir__}/bpm", path('/var/vcap/jobs/bpm/bin/bpm'))
  end

  # Configurations are readable for vcap, scripts executable, as the agent writes them.
  def write_jobs(files)
    files.each do |file, text|
      target = path("/var/vcap/jobs/#{file}")
      FileUtils.mkdir_p(File.dirname(target))
      File.write(target, text, perm: file.include?('/bin/') ? 0o750 : 0o640)
    end
    run!('chown -R root:vcap /var/vcap/jobs')
  end
end
